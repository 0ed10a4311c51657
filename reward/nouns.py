"""Words that may follow a number without changing it: counted nouns, and what goes with them.

A word that is neither here nor a unit (`reward.units`) passes after a number only if the reference
has it too: "5 squared", "5 halves" and "5 incorrect" are not 5. Nouns stand in the singular;
`is_noun` reads regular plurals.
"""

_NOUNS_TEXT = """
acorn actor address adult afternoon age album alligator almond angle animal answer ant apartment
app apple appointment arc arm arrangement article atom attempt attendee avocado award baby badge
bag bagel baguette ball balloon ballot banana bandage banner bar barrel basket batch battery bead
bean bear bed bedbug bedroom bee beef beetle berry bicycle bike bill bin bird birthday biscuit bit
bite blanket block blueberry board boat bolt bone book boot bottle bowl box boy bracelet branch
bread breakfast brick bridge brochure brother brownie brush brushes bucket bug building bulb bull
bunch bundle bunny burger burrito bus bush bushel butter butterfly button byte cabinet cable cake
calves camel camera camper can candies candle candy cap capsule car card carnation carpet carriage
carrot cart carton case cat caterpillar ceiling cell cement cereal chair chapter character cheese
chef cherry chicken chickpea child children chip chocolate choice chord chore circle citation
citizen city class classmate classroom clerk clip closet cloth cloud coat coconut code coffee coin
color coloring colour colouring column combination company computer concert concrete cone
container cookie copy corn corner cotton country coupon course cousin cow crab cracker crate
crayon cricket crocodile crystal cub cucumber cup cupcake curtain customer cycle cylinder daffodil
daisy dandelion data daughter day delegate diagonal digit dime dinner dirt dish divisor doctor dog
doll dolphin donkey donut door dose dot doughnut draw drawer drawing dress drink driver drop duck
ear earring edge edition egg eggplant electron element elephant ellipse email employee emu engine
envelope episode equation eraser evening event exam exercise eye fabric face factors factory
family farmer feather fence field figurine file film firetruck firewood firework fish flag flavor
flavour flea flies flight floor flour flower fly flyer folder follower food fork fox friend frog
fruit fuel galaxy game garden gas gasoline gate gecko geese gem gene gift giraffe girl glass glove
goal goat goldfish goose grade grandchild grape graph gravel group guest gum gumball guppies guppy
hair hamburger hamster handshake hat hatchling hen herb hexagon highlighter holiday horse hotdog
house household ingredient inning insect instance integer intercept intersection island item
jacket jar jeans jellybean jewel job jug juice jump kangaroo key kid kind kitchen kite kitten
knife koala ladies lady lake lamb lamp lantern lap laptop lawn leaf leaves leg lego lemon lesson
letter license light lilies lily limb lime line lion lizard load loaf loaves lobster lock lollipop
lumber lunch macaroon machine magazine man mango mangoes marble marigold mark marker marshmallow
match matches material meal meat meatball medal meeting melon member men message method mice milk
milkshake minnow mistake model molecule money monkey moon morning mosquito mosquitoes motorcycle
mountain mouse move movie muffin mug mushroom musician nail napkin necklace needle neighbor nephew
newborn newspaper nickel niece night node note notebook novel number nurse nut object octagon oil
onion orange orchid order oscillation outcome outfit oyster pack package packet page pail paint
painting pair pallet pamphlet pan pancake papaya paper parallelogram parent park parking parrot
participant particle partition party passenger password pasta pastry patch path patient pattern
paw pea peach peanut pear pebble pen pencil penguin pennies penny pentagon people pepper
permutation person pet petal phone photo photograph photon picture pie piece pig pigeon pile pill
pillow pin pineapple pipe pistachio pixel pizza place plane planet plank plant plate player plum
poem point polygon polynomial pony pool popsicle portion position possibilities possibility
postcard poster pot potato present primes prism prize problem product program project proton
pumpkin pup pupil puppy purse pushup puzzle pyramid quadrilateral question quiz rabbit rain rat
rectangle region report requirement restaurant revolution rhombus ribbon rice ride ring river road
robot rock rod roll room rooster rope rose rotation round route row ruler run runner sack salad
sale salt sample sand sandwich sauce sausage scar scarf scarves school scientist scoop screw
seagull seashell season seat seed seedling segment selection sentence sequence serving session set
shark sheep sheet shelf shell shelves shift ship shirt shoe shop shot show shrimp sibling side
singer sister situp size skill skirt slice snack snail snake snow sock soda soil soldier solution
son song sonnet soup space sphere spider spoon spot squirrel stack stair stamp star starfish state
statue steak steel step stick sticker stitch stone store story straw strawberry street string
stripe student subject subsequence subset sugar suitcase sunflower supplier swan swap sweater
sweet swimmer sword symbol table tablet taco tadpole tail tangerine tank task tea teacher team
teenager teeth television tent term test text thing throw ticket tiger tile tiling tin tire tissue
toad token tomato tool tooth topic tortoise touchdown tourist tournament towel tower town toy
train trapezoid tray treasure treat tree triangle trip triplet trophy truck tub tube tulip tuple
turkey turn turtle type unit value van vegetable vehicle version vertex vertices video village
vine visit visitor volunteer vote voter waffle wagon walk wall wallet walnut water watermelon way
weapon wedge weekend weight whale wheel widget win window wing wire wolf wolves woman women wood
wool word workday worker worm yard yarn yogurt zebra zucchini
"""
NOUNS = frozenset(_NOUNS_TEXT.split())
# They may precede a noun or a unit, but mean nothing to a number by themselves.
_ADJECTIVES_TEXT = """
different distinct possible total whole real complex positive nonnegative nonzero integer
integral rational natural prime even odd unique ordered unordered such valid consecutive
additional extra new full empty small large big long short tall red blue green yellow orange
purple pink white black brown grey gray gold silver wooden plastic metal paper single equal
identical square cubic linear sq cu female male young old adult lattice integer
chocolate vanilla strawberry soccer tennis baseball basketball golf school parking ice cream
"""
ADJECTIVES = frozenset(_ADJECTIVES_TEXT.split())
# Nouns only behind an adjective: "3 real roots", but "25 roots" may be 5.
DESCRIBED = {"root", "roots", "zero", "zeros", "multiples", "squares", "cubes", "powers"}
CONNECTIVES = {"per", "of", "a", "an", "the", "each", "every", "in", "for", "unit", "units", "p"}
# They may end what follows a number, or be all of it.
_CLOSING_TEXT = """
each total altogether apiece overall left remaining old long wide tall deep high thick apart
away unit units square am pm
"""
CLOSING = frozenset(_CLOSING_TEXT.split())


def is_noun(word: str) -> bool:
    """Tell whether a word in lower case is a counted noun, in the singular or plural."""
    return bool(singulars(word) & NOUNS)


def singulars(word: str) -> set[str]:
    """Return the word and what it may be the plural of."""
    forms = {word}
    if word.endswith("s") and not word.endswith("ss"):
        forms.add(word[:-1])
        if word.endswith(("ses", "xes", "zes", "ches", "shes", "oes")):
            forms.add(word[:-2])
        if word.endswith("ies"):
            forms.add(word[:-3] + "y")
    return forms
