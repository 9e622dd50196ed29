"""The words and units that may stand beside the number of an answer (see `parse_number`)."""

import functools
import re


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


def _any(words: str) -> str:
    """A pattern for any of these words."""
    return f"(?:{'|'.join(words.split())})"


# Before a number, as in "so the total cost is exactly 42".
THUS = _any("so then thus hence therefore finally")
VERBS = """
    is are was were equal equals make makes made get gets got has have had need needs cost costs
    earn earns earned pay pays paid spend spends spent take takes took sell sells sold buy buys
    bought eat eats ate travel travels"""
VERB = rf"(?:w(?:ill|ould) be|(?:(?:will|would|needs? to|can) )?{_any(VERBS)})"  # not "can be"
JUST = "(?:exactly|only|just|now|simply|indeed|therefore|equal to|a total of)"
KNOWN = _set(f"""
    {VERBS} will would can be exactly only just now simply indeed so then thus hence therefore
    finally i you he she it they we there this that s her him them his its our their my the a an of
    for in to final correct total required possible remaining positive largest smallest greatest
    maximum minimum integer answer ans result solution sum number amount value cost price area
    perimeter volume length width height distance speed time age average mean difference product
    probability profit""")

# After every number.
UNITS = _set("""
    dollar cent euro rupee meter metre foot inch mile yard gram kilogram centimeter kilometer pound
    ounce second minute hour day week month year liter litre cup gallon percent degree unit way""")
UNITS |= {unit + "s" for unit in UNITS} | _set("feet inches people person men women children")
SHORT = _set("""
    km cm mm nm mg kg mL ml cl dl lb lbs oz ft yd mi in hr hrs min mins sec secs mph kph kmh kW MW
    kWh MB GB TB kB Hz kHz MHz GHz USD EUR GBP""")  # also without a space, as in 5km
LETTERS = _set("m g h s l L")  # only with a space: 5 m
RATES = _set(
    "hr min sec second minute hour day week month year gallon"
)  # after "per" or /; h and s, too, after a unit
NO_UNIT = re.compile(  # words of a question in -s that are no plain units: numbers, verbs, adverbs
    r"was|has|does|this|thus|its|his|yes|plus|minus|times|less|unless|perhaps|oops|.*ways|.*wards|"
    r"equals|ones|twos|twelves|elevens|threes|fours|fives|sixes|sevens|eights|nines|tens|gross|scores|halfs|halves|"
    r"thirds|quarters|pairs|couples|doubles|triples|crores|lakhs|.*(?:hundreds|thousands|dozens)|"
    r".*(?:illions|illones)|(?:twen|thir|for|fif|six|seven|eigh|nine)ties|"
    r"(?:four|fif|six|seven|eigh|nin|ten|elev|eleven|twelf|.*(?:teen|tie|dred|sand|ion))ths"
)

CHANGED = re.compile(  # words of a question that are numbers, or say what was done to one
    r".*ed|.*ing|.*ly|reversed?|percent|digits?|remainder|one|two|three|four|five|six|seven|eight|"
    r"nine|ten|eleven|twelve|.*teen|twenty|.*ty|hundred|thousand|dozen|.*illion"
)

# Words that deny or change what they stand beside, or leave it open. No answer is read there.
DENY = _set("""
    no not never none neither nor or cannot wrong incorrect false mistaken maybe perhaps possibly
    probably might could guess doubt unsure if whether unless suppose assume another approximately
    roughly about almost plus minus times twice thrice double triple half square cube root opposite
    negative inverse reciprocal log ln sin cos tan mod power approx ca est circa""")
LIMIT = (
    _set("""
    than least most more less fewer over under above below between near around before after until
    except without but each other previous original max min vs""")
)  # they do so only directly before a number


def words(text: str) -> list[str]:
    """The words of a text in small letters; "isn't" is two, "is" and "not"."""
    return re.findall("[a-z]+", re.sub("n['’]t", " not", text.lower()))


@functools.lru_cache(maxsize=64)
def words_of_question(question: str) -> frozenset[str]:
    """The words of a question that may stand beside a number."""
    return frozenset(w for w in words(question) if len(w) > 2 and not CHANGED.fullmatch(w)) - (
        DENY | LIMIT
    )


def is_unit(word: str, asked: frozenset[str]) -> bool:
    """Whether a word is a unit or, as apples or apple, of a question whose words are `asked`."""
    if word in SHORT | LETTERS or word.lower() in UNITS:
        return True
    plurals = {word.lower(), word.lower() + "s"} & asked
    return word.lower() not in DENY | LIMIT and any(
        plural.endswith("s") and not NO_UNIT.fullmatch(plural) for plural in plurals
    )
