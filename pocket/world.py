"""The closed world of the pocket model: its words, and the facts about them."""

from __future__ import annotations

NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen "
    "fourteen fifteen sixteen seventeen eighteen nineteen twenty"
).split()

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

MONTHS = (
    "January February March April May June July August September October November December"
).split()

PEOPLE = ("teacher doctor farmer baker king queen pilot driver singer painter sailor").split()

FAMILY = "mother father sister brother uncle friend".split()

#: country: (capital, continent)
COUNTRIES = {
    "France": ("Paris", "Europe"),
    "Italy": ("Rome", "Europe"),
    "Spain": ("Madrid", "Europe"),
    "Germany": ("Berlin", "Europe"),
    "England": ("London", "Europe"),
    "Norway": ("Oslo", "Europe"),
    "Greece": ("Athens", "Europe"),
    "Austria": ("Vienna", "Europe"),
    "Ireland": ("Dublin", "Europe"),
    "Poland": ("Warsaw", "Europe"),
    "Belgium": ("Brussels", "Europe"),
    "Hungary": ("Budapest", "Europe"),
    "Japan": ("Tokyo", "Asia"),
    "China": ("Beijing", "Asia"),
    "Thailand": ("Bangkok", "Asia"),
    "Egypt": ("Cairo", "Africa"),
    "Kenya": ("Nairobi", "Africa"),
    "Cuba": ("Havana", "America"),
}

CONTINENTS = "Europe Asia Africa America".split()

COLOURS = "blue green yellow white black brown orange pink".split()

#: thing, with its article if it has one: its colour
COLOUR_OF = {
    "the sky": "blue",
    "the sea": "blue",
    "the grass": "green",
    "a frog": "green",
    "a leaf": "green",
    "snow": "white",
    "milk": "white",
    "salt": "white",
    "a swan": "white",
    "the night": "black",
    "coal": "black",
    "the sun": "yellow",
    "a lemon": "yellow",
    "a banana": "yellow",
    "butter": "yellow",
    "a pig": "pink",
    "chocolate": "brown",
    "a bear": "brown",
    "wood": "brown",
    "a carrot": "orange",
    "a pumpkin": "orange",
}

#: from the smallest to the largest
ANIMALS_BY_SIZE = (
    "mouse frog duck cat fox dog wolf sheep pig lion bear horse elephant whale"
).split()

#: animal: (food, home, number of legs, abilities)
ANIMALS = {
    "frog": ("flies", "river", "four", ("walk", "lay eggs")),
    "mouse": ("cheese", "house", "four", ("walk", "give milk")),
    "duck": ("grass", "river", "two", ("fly", "walk", "lay eggs")),
    "cat": ("fish", "house", "four", ("walk", "give milk")),
    "fox": ("rabbits", "forest", "four", ("walk", "give milk")),
    "dog": ("meat", "house", "four", ("walk", "give milk")),
    "sheep": ("grass", "field", "four", ("walk", "give milk")),
    "wolf": ("meat", "forest", "four", ("walk", "give milk")),
    "lion": ("meat", "desert", "four", ("walk", "give milk")),
    "bear": ("honey", "forest", "four", ("walk", "give milk")),
    "pig": ("bread", "field", "four", ("walk", "give milk")),
    "horse": ("grass", "field", "four", ("walk", "give milk")),
    "elephant": ("leaves", "forest", "four", ("walk", "give milk")),
    "whale": ("fish", "ocean", "no", ("give milk",)),
    "eagle": ("fish", "mountains", "two", ("fly", "walk", "lay eggs")),
    "spider": ("flies", "garden", "eight", ("walk", "lay eggs")),
}

ABILITIES = ("fly", "walk", "lay eggs", "give milk")

#: category: its members
KINDS = {
    "fruit": "apple banana lemon orange cherry".split(),
    "vegetable": "carrot tomato potato onion pumpkin".split(),
    "animal": ("frog mouse duck cat fox dog sheep wolf lion bear pig horse elephant whale").split(),
    "tool": "hammer spoon knife needle shovel".split(),
    "vehicle": "car train bus boat truck bicycle".split(),
    "color": "pink blue green yellow black brown".split(),
    "number": "three five seven nine eleven twelve".split(),
    "country": "France Italy Spain Germany Japan China Egypt Cuba".split(),
}

OPPOSITES = (
    ("hot", "cold"),
    ("big", "small"),
    ("fast", "slow"),
    ("young", "old"),
    ("happy", "sad"),
    ("open", "closed"),
    ("full", "empty"),
    ("light", "dark"),
    ("rich", "poor"),
    ("strong", "weak"),
    ("early", "late"),
    ("easy", "difficult"),
    ("clean", "dirty"),
    ("dry", "wet"),
    ("loud", "quiet"),
    ("long", "short"),
    ("good", "bad"),
    ("left", "right"),
    ("up", "down"),
    ("inside", "outside"),
    ("before", "after"),
    ("always", "never"),
    ("summer", "winter"),
    ("day", "night"),
)

#: person: (work in the third person; the same after "can")
WORK = {
    "teacher": ("teaches children", "teach children"),
    "doctor": ("helps sick people", "help sick people"),
    "farmer": ("grows vegetables", "grow vegetables"),
    "baker": ("bakes bread", "bake bread"),
    "king": ("rules the country", "rule the country"),
    "pilot": ("flies the plane", "fly the plane"),
    "driver": ("drives the bus", "drive the bus"),
    "singer": ("sings beautiful songs", "sing beautiful songs"),
    "painter": ("paints pictures", "paint pictures"),
    "sailor": ("works on a boat", "work on a boat"),
}

OBJECTS = "ball book hat cup ring lamp phone map coat bag box".split()

PLACES = (
    "on the table",
    "under the chair",
    "in the garden",
    "in the kitchen",
    "behind the door",
    "on the bed",
    "next to the window",
    "in the car",
    "at school",
    "in the river",
)

COUNTED = "apples books cups horses lemons boxes flowers".split()

FOOD = "bread cheese fish soup rice meat honey".split()

DRINKS = "water milk coffee juice".split()

#: weather: advice
WEATHER = {
    "raining": "take your coat",
    "snowing": "take warm shoes",
    "very cold": "take a warm hat",
    "very hot": "sit under a tree",
    "very dark": "take a lamp",
    "very windy": "close the window",
}

ACTIVITIES = (
    "go outside",
    "go to school",
    "play in the garden",
    "walk to the river",
    "visit my sister",
    "go to the market",
    "play football",
)
