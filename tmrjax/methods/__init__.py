"""Methods of multimodal extraction: one file, one paper."""
