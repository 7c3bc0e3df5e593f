"""The fixed word lists behind the questions: real words, real capitals, and a small made-up world."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WORDS: tuple[str, ...] = _words(
    """
    ant apple arm autumn baby bag ball banana basket bear bed bee bell bird boat bone book bottle box boy
    branch bread brick bridge brush bus butter button cake camel camera candle car card carrot castle cat
    chair cheese cherry chess child church circle city clock cloud coat coffee corn cotton cow cup dance
    desert desk dog door dragon dream dress drum duck eagle ear earth egg engine eye face farm father
    feather field finger fire fish flag flower fly foot forest fork fox friend frog fruit game garden gate
    ghost giraffe girl glass goat gold grape grass guitar hair hammer hand harbor hat hello heart hill honey
    horse house ice ink iron island jacket jar jelly jungle key king kite kitten knee knife ladder lake lamp
    leaf lemon letter light lion lizard lock magic map market melon milk mirror money monkey moon mother
    mouse mouth music nail neck needle nest night nose ocean onion orange oven owl paper peach pear pencil
    penny piano pig pillow pilot pizza planet plate pocket potato pencil python queen rabbit radio rain
    ring river road robot rocket roof root rope rose ruler sail salt sand school sea seed sheep shell ship
    shirt shoe shop silver sister sky snake snow soap soup spider spoon spring star stone storm street
    sugar summer sun swan swarm table tail tea teeth tiger toast tomato tower town toy train tree truck
    tunnel turtle valley violin wagon wall water wheel whale wind window winter wolf wood wool world yarn
    zebra
    """
)

NAMES: tuple[str, ...] = _words(
    """
    Ada Adam Alan Alice Amir Ana Anna Ben Bob Carl Carla Chen Clara Dan Dana David Dora Elena Eli Emil Emma
    Eva Felix Finn Fritz Grace Hana Hugo Ida Igor Ines Iris Ivan Jack Jan Jana Joan John Jonas Julia Kai
    Karl Kim Lara Lea Leo Lena Lina Linus Lisa Luca Lucy Maria Mark Marta Max Maya Mia Milo Mina Nadia Nina
    Noah Nora Olga Oscar Otto Paul Pia Rosa Ruth Sam Sara Sven Tara Theo Tim Tina Tom Uma Vera Victor Wei
    Yara Yuki Zoe
    """
)

CAPITALS: tuple[tuple[str, str], ...] = (
    ("France", "Paris"),
    ("Germany", "Berlin"),
    ("Italy", "Rome"),
    ("Spain", "Madrid"),
    ("Portugal", "Lisbon"),
    ("England", "London"),
    ("Ireland", "Dublin"),
    ("Norway", "Oslo"),
    ("Sweden", "Stockholm"),
    ("Finland", "Helsinki"),
    ("Poland", "Warsaw"),
    ("Austria", "Vienna"),
    ("Greece", "Athens"),
    ("Egypt", "Cairo"),
    ("Kenya", "Nairobi"),
    ("India", "Delhi"),
    ("China", "Beijing"),
    ("Japan", "Tokyo"),
    ("Canada", "Ottawa"),
    ("Peru", "Lima"),
    ("Zorvia", "Kelm"),
    ("Ulmar", "Tessip"),
    ("Brindle", "Oxa"),
    ("Quorra", "Fennick"),
    ("Mistral", "Davo"),
    ("Halvia", "Runt"),
    ("Ombria", "Selk"),
    ("Yantor", "Pell"),
)

# Made-up creatures: name, colour, home, food.
CREATURES: tuple[tuple[str, str, str, str], ...] = (
    ("blim", "blue", "caves", "moss"),
    ("dorp", "green", "trees", "nuts"),
    ("fizzle", "red", "deserts", "ants"),
    ("grumm", "brown", "bogs", "roots"),
    ("jaffo", "orange", "rivers", "fish"),
    ("kwee", "white", "mountains", "snow"),
    ("lunt", "black", "cellars", "mice"),
    ("mip", "yellow", "fields", "corn"),
    ("norble", "purple", "lakes", "reeds"),
    ("ploo", "pink", "gardens", "petals"),
    ("snarf", "grey", "towers", "bats"),
    ("tweem", "silver", "clouds", "rain"),
    ("vosk", "golden", "hills", "honey"),
    ("zub", "turquoise", "oceans", "shells"),
)

DAYS: tuple[str, ...] = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

MONTHS: tuple[str, ...] = _words(
    "January February March April May June July August September October November December"
)

# Things the model knows nothing about, for the questions that it must decline.
TOPICS: tuple[str, ...] = (
    "the sky",
    "the sea",
    "the moon",
    "the sun",
    "love",
    "time",
    "money",
    "dogs",
    "cats",
    "football",
    "chess",
    "music",
    "physics",
    "history",
    "the weather",
    "the stock market",
    "politics",
    "a poem",
    "Python",
    "a good book",
    "dinner",
    "pasta",
    "the universe",
    "gravity",
    "black holes",
    "dinosaurs",
    "the internet",
    "computers",
    "quantum mechanics",
    "the Roman Empire",
    "Shakespeare",
    "Einstein",
    "Mozart",
    "bitcoin",
    "coffee",
    "tea",
    "bread",
    "rainbows",
    "volcanoes",
    "trains",
    "cars",
    "bicycles",
    "the news",
    "taxes",
    "a holiday",
    "the meaning of life",
    "photosynthesis",
    "the human body",
    "dreams",
    "language models",
    "neural networks",
    "peer to peer networks",
    "distributed systems",
    "robots",
    "space travel",
    "cooking",
    "gardening",
    "painting",
    "the ocean",
    "climate",
    "your parents",
    "my homework",
    "a joke",
    "a story",
)

QUALITIES: tuple[str, ...] = (
    "blue",
    "hot",
    "cold",
    "big",
    "small",
    "slow",
    "fast",
    "important",
    "expensive",
    "old",
    "green",
    "hard",
    "easy",
    "beautiful",
    "dangerous",
    "round",
    "heavy",
    "loud",
    "bright",
    "dark",
    "good",
    "bad",
    "interesting",
)

FOREIGN: tuple[str, ...] = (
    "¿Qué hora es?",
    "Wie geht es dir?",
    "Où est la gare?",
    "Come stai?",
    "你好",
    "今天天气怎么样？",
    "こんにちは",
    "Привет, как дела?",
    "مرحبا",
    "नमस्ते",
    "안녕하세요",
    "Γειά σου",
    "שלום",
    "😀",
    "🤖👋",
    "Zażółć gęślą jaźń",
    "Ångström",
    "naïve café",
    "∑ x² = π",
    "asdfgh",
    "qwerty uiop",
    "???",
    "...",
    "<html>",
    "import os",
    "§ 12",
    "rm -rf *",
    "x = [1, 2, 3]",
    '{"a": 1}',
    "lorem ipsum dolor sit amet",
    "!",
    "#1",
    "100%",
    "a/b",
    "C++",
)
