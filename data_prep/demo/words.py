"""The words of the demo world: ambiguous names, context words that betray a type, and words that betray nothing.

Not of the paper: the demo data are generated. Every list is fixed, so that the same seed gives the same bytes.
"""

from __future__ import annotations

ENTITY_TYPES = ("PER", "LOC", "ORG", "MISC")


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.replace("\n", "|").split("|") if line.strip())


# Each of these is a person, a place, an organisation or a product somewhere: the form of the name says nothing.
NAMES = tuple(
    words_of(name)
    for name in _lines(
        """Jordan|Paris|Lincoln|Florence|Phoenix|Mercury|Austin|Chelsea|Brooklyn|Sydney|Madison|Washington|Houston
        Dallas|Savannah|Victoria|Georgia|Carolina|Virginia|Charlotte|Orlando|Jackson|Hudson|Aurora|Troy|Kingston
        Preston|Milan|Sofia|Vienna|Geneva|Valencia|Lorraine|Montana|Dakota|Denver|Devon|Ford|Tesla|Chanel|Apollo
        Atlas|Venus|Titan|Orion|Luna|Amazon|Saturn|Pluto|Gemini|Eden|Salem|Raleigh|Logan|Lansing|Regina|Verona
        Siena|Adelaide|Darwin|Wellington|Nelson|Hamilton|Cambridge|San Marino|Santa Monica|Saint Laurent
        New Haven|Port Royal|Mount Vernon|Little Rock|Crystal Palace|West Ham|Silver Lake|Grand Marnier
        Golden Gate|Red Bull|North Star|Blue Ridge|Monte Carlo"""
    )
)

CONTEXT_WORDS = {
    "PER": words_of(
        """birthday wedding haircut autograph interview speech selfie smile brother sister girlfriend husband wife
        uncle coach actor singer drummer guitarist goalkeeper striker pitcher novelist poet painter comedian
        dancer nurse lawyer surgeon senator mayor prince princess bride groom grandson nephew niece twin tattoo
        beard moustache makeup biography funeral childhood bandmate teammate roommate"""
    ),
    "LOC": words_of(
        """harbour beach river bridge valley mountain airport station street avenue suburb village castle cathedral
        lighthouse skyline sunset coast island bay waterfall canyon forest trail campsite hotel hostel traffic
        motorway rainfall snowfall flood earthquake border ferry tram metro museum market square park garden zoo
        aquarium ruins vineyard cliff downtown rooftops seafront"""
    ),
    "ORG": words_of(
        """merger shares shareholders profits dividend lawsuit payroll layoffs boardroom headquarters factory brand
        startup investors league roster franchise sponsor union strike charity fundraiser donors faculty
        enrolment tuition subsidiary auditor takeover revenue recall invoice contract tender warehouse retailer
        newsroom broadcaster committee ministry agency workforce vacancy bankruptcy acquisition chairman staff
        recruiters fleet bailout"""
    ),
    "MISC": words_of(
        """premiere trailer sequel soundtrack album single remix episode season finale playlist vinyl paperback
        hardcover comic console multiplayer patch download update battery charger screen engine gearbox exhaust
        horsepower sedan sneakers perfume flavour bottle edition festival parade carnival trophy jersey poster
        preorder firmware keyboard camera lens drone headset brew roast blend prototype"""
    ),
}

NEUTRAL_WORDS = words_of(
    """news story picture moment thing idea weekend talk rumour question answer surprise memory morning mood post
    thread feeling wait dream"""
)

OPENERS = _lines(
    """so happy about|thinking of|nobody talks about|waiting for|look at|back to|still dreaming of|just saw
    one more day of|all about|finally|we love|i miss|good morning|cannot believe|this is|more of|say hello to
    never forget|everyone loves"""
)
LINKS = _lines("""and the|with the|after the|before the|because of the|for the|, what a|: that|and that|plus the""")
CLOSERS = _lines(
    """today|this week|so good|love it|!!!|wow|again|lol|cannot wait|at last|right now|no words|as always|best ever
    .|! !"""
)
FILLERS = words_of("really honestly well ok yes haha friends guys please maybe still anyway")
NO_ENTITY = _lines(
    """so tired of everything today lol|who else is awake right now ?|happy friday everyone , enjoy it !
    cannot sleep and it is already late|need more coffee please , no words|this made my day , thank you all
    why is it always like this ?|best thing i saw this week , wow"""
)

SURNAMES = words_of(
    """Harlow Whitfield Osman Mendoza Bexley Norton Corrie Marlow Tarn Elmore Fenwick Gallo Ibarra Jansen Kowalski
    Lindqvist Moreau Nakata Okafor Petrov Quiroga Rossi Sandoval Tanaka Ulrich Varga Winslow Yilmaz Zeller
    Abbott"""
)
# An unambiguous second entity: the marker before or after a surname tells its type.
MARKED_FORMS = {
    "PER": (("President", None), ("Mrs", None), ("Dr", None), ("Sir", None)),
    "LOC": (("Lake", None), ("Mount", None), (None, "Road"), (None, "Beachside")),
    "ORG": ((None, "University"), (None, "FC"), (None, "Inc"), (None, "Airlines")),
    "MISC": ((None, "Awards"), (None, "Cup"), (None, "Expo"), (None, "Marathon")),
}
SECOND_LINKS = {"PER": ("with", "says"), "LOC": ("near", "by"), "ORG": ("via", "thanks to"), "MISC": ("at", "during")}

# The relation world: a marked person and an ambiguous name, with words between them that relate the two or do not.
RELATION_OF_TYPE = {
    "PER": "/per/per/peer",
    "LOC": "/per/loc/place_of_residence",
    "ORG": "/per/org/member_of",
    "MISC": "/per/misc/present_in",
}
RELATING_LINKS = _lines("""says|with|posted by|as told by|, says|, proudly shown by""")
UNRELATED_LINKS = _lines("""; elsewhere|, nothing new from|; meanwhile|, but no word from|, unlike|; off topic :""")

HASHTAGS = words_of("#tbt #monday #love #photooftheday #nowplaying #breaking #fun #mood")
EMOJI = ("😀", "😂", "❤", "🔥", "👏", "🎉", "👨\u200d👩\u200d👧")
INVISIBLE = ("\u200b", "\ufe0f", "\u200d")

# What the demo's detector names in the pictures of each scene; none of them tells by its form what it belongs to.
OBJECT_LABELS = {
    "PER": words_of("face hair shirt person"),
    "LOC": words_of("house window hill roof"),
    "ORG": words_of("sign logo stripe pole"),
    "MISC": words_of("cup car wheel handle"),
    "NEUTRAL": words_of("wave line wall shadow"),
}
