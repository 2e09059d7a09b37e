"""tmrjax: entities and relations out of posts with pictures, after TMR (Zheng et al., ACL 2023), in JAX/Flax."""

__version__ = "0.1.0"
