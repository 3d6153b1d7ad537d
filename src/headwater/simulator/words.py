"""The words that titles and texts of the simulated catalogue are made of.

A category has four topics, a topic its own nouns, so that titles and texts say what an item is about
and a content source has something to find.
"""

from __future__ import annotations

from typing import NamedTuple


class Topic(NamedTuple):
    """A narrow subject: ``phrase`` names it in a text, ``nouns`` are what an item of it can be."""

    name: str
    phrase: str
    nouns: tuple[str, ...]


class Category(NamedTuple):
    """A shelf of the shop: ``price`` is the median of its prices, in the shop's currency."""

    name: str
    price: float
    topics: tuple[Topic, Topic, Topic, Topic]


def _topic(name: str, phrase: str, nouns: str) -> Topic:
    return Topic(name, phrase, tuple(noun.strip() for noun in nouns.split(",")))


def _category(name: str, price: float, *topics: tuple[str, str, str]) -> Category:
    first, second, third, fourth = (_topic(*topic) for topic in topics)
    return Category(name, price, (first, second, third, fourth))


CATEGORIES: tuple[Category, ...] = (
    _category(
        "Running",
        48.0,
        ("trail running", "muddy trails and long climbs", "Trail Shoe, Race Vest, Gaiter, Soft Flask, Headlamp"),
        ("road racing", "fast kilometres on tarmac", "Racing Flat, Singlet, Split Short, Stopwatch, Pace Belt"),
        ("recovery", "tired legs after a hard session", "Foam Roller, Compression Sock, Massage Ball, Slide"),
        ("winter running", "cold mornings and dark evenings", "Thermal Tight, Running Glove, Beanie, Wind Jacket"),
    ),
    _category(
        "Cycling",
        75.0,
        ("road cycling", "long rides on quiet roads", "Bib Short, Carbon Bar, Road Tyre, Saddle, Jersey"),
        ("mountain biking", "rocky descents and forest loops", "Dropper Post, Knee Pad, Trail Tyre, Enduro Helmet"),
        ("bike commuting", "the daily ride to work", "Pannier, Folding Lock, Mudguard, Rear Light, Rain Cape"),
        ("bike repair", "a workshop at home", "Torque Wrench, Chain Tool, Repair Stand, Floor Pump, Cable Kit"),
    ),
    _category(
        "Hiking",
        62.0,
        ("day hikes", "a day out in the hills", "Daypack, Trekking Pole, Walking Boot, Map Case, Sun Hat"),
        ("wild camping", "nights under the stars", "Bivvy Bag, Tarp, Sleeping Mat, Camp Stove, Titanium Mug"),
        ("alpine routes", "ridges, snow and scree", "Ice Axe, Crampon, Rope Bag, Shell Jacket, Glacier Goggle"),
        ("navigation", "finding the way without a signal", "Compass, Altimeter, Route Book, Trail Map, Whistle"),
    ),
    _category(
        "Yoga",
        34.0,
        ("flow yoga", "moving with the breath", "Flow Mat, Yoga Towel, Strap, Legging, Tank Top"),
        ("restorative yoga", "slow evenings and deep rest", "Bolster, Eye Pillow, Wool Blanket, Cork Block"),
        ("meditation", "sitting still for a while", "Meditation Cushion, Singing Bowl, Timer, Shawl, Bench"),
        ("pilates", "a strong and steady core", "Pilates Ring, Resistance Band, Soft Ball, Grip Sock"),
    ),
    _category(
        "Cooking",
        39.0,
        ("weeknight dinners", "a quick meal for four", "Saute Pan, Sheet Pan, Chopping Board, Tongs, Recipe Book"),
        ("asian kitchen", "woks, steam and spice", "Carbon Wok, Bamboo Steamer, Cleaver, Rice Cooker, Chilli Oil"),
        ("grilling", "smoke and open fire", "Charcoal Grill, Meat Thermometer, Smoker Box, Basting Brush, Rub"),
        ("kitchen knives", "a sharp edge every day", "Chef Knife, Whetstone, Paring Knife, Knife Roll, Honing Rod"),
    ),
    _category(
        "Baking",
        27.0,
        ("sourdough", "wild yeast and long proofs", "Proofing Basket, Dutch Oven, Bench Scraper, Starter Jar, Lame"),
        ("pastry", "butter, layers and patience", "Tart Ring, Rolling Pin, Pastry Brush, Marble Slab, Piping Bag"),
        ("cakes", "birthdays and Sunday afternoons", "Bundt Tin, Turntable, Palette Knife, Cake Dome, Sprinkles"),
        ("chocolate", "tempering and ganache", "Bonbon Mould, Dipping Fork, Cocoa, Tempering Stone, Truffle Box"),
    ),
    _category(
        "Coffee",
        44.0,
        ("espresso", "short, dense and sweet shots", "Tamper, Portafilter, Espresso Cup, Knock Box, Dosing Funnel"),
        ("pour over", "clear and slow filter coffee", "Dripper, Gooseneck Kettle, Paper Filter, Server, Coffee Scale"),
        ("roasting", "green beans at home", "Drum Roaster, Cooling Tray, Green Beans, Sample Jar, Roast Log"),
        ("coffee on the road", "good coffee in a tent or a train", "Hand Grinder, Travel Press, Thermos, Enamel Mug"),
    ),
    _category(
        "Gardening",
        29.0,
        ("vegetable beds", "harvests from spring to frost", "Seed Box, Raised Bed, Hoe, Compost Bin, Row Cover"),
        ("balcony garden", "green in a small space", "Window Box, Watering Can, Herb Set, Trellis, Hanging Pot"),
        ("house plants", "leaves for dark corners", "Plant Mister, Ceramic Pot, Moss Pole, Grow Light, Fern"),
        ("garden tools", "tools that last for decades", "Secateurs, Spade, Pruning Saw, Trowel, Garden Glove"),
    ),
    _category(
        "Home Decor",
        58.0,
        ("lighting", "warm light in the evening", "Table Lamp, Paper Lantern, Wall Sconce, Dimmer, Candle Holder"),
        ("textiles", "wool and linen for the sofa", "Throw, Linen Cushion, Kilim, Curtain, Duvet Cover"),
        ("wall art", "something to look at", "Art Print, Oak Frame, Wall Clock, Tapestry, Picture Ledge"),
        ("small furniture", "the last corner of the room", "Side Table, Step Stool, Shelf, Coat Stand, Plant Stand"),
    ),
    _category(
        "Photography",
        120.0,
        ("street photography", "people and light in the city", "Compact Camera, Wrist Strap, Prime Lens, Photo Book"),
        ("landscape photography", "mountains before sunrise", "Tripod, Filter Set, Wide Lens, Remote Release"),
        ("film photography", "grain and patience", "Film Roll, Light Meter, Developing Tank, Film Scanner"),
        ("studio light", "faces and products indoors", "Softbox, Backdrop, Flash Trigger, Reflector, Light Stand"),
    ),
    _category(
        "Music",
        85.0,
        ("guitar", "riffs, strings and calluses", "Guitar Strap, Overdrive Pedal, Capo, String Set, Slide"),
        ("synthesizers", "oscillators late at night", "Drum Machine, Patch Cable, Mono Synth, Sequencer, Sampler"),
        (
            "vinyl",
            "records and the gear to play them",
            "Turntable, Record Brush, Phono Preamp, Record Crate, Cartridge",
        ),
        ("piano", "scales, sonatas and songs", "Digital Piano, Piano Bench, Metronome, Sheet Music, Sustain Pedal"),
    ),
    _category(
        "Board Games",
        36.0,
        (
            "strategy games",
            "three hours around a big table",
            "Empire Game, Trading Game, Map Expansion, Engine Builder",
        ),
        (
            "family games",
            "a rainy afternoon with children",
            "Memory Game, Dice Game, Quiz Box, Stacking Game, Card Game",
        ),
        ("cooperative games", "all against the board", "Escape Box, Detective Case, Island Game, Rescue Game"),
        ("miniatures", "small armies, brush in hand", "Paint Set, Hero Figure, Terrain Kit, Brush Case, Army Box"),
    ),
    _category(
        "Video Games",
        42.0,
        (
            "role playing games",
            "a hundred hours in another world",
            "Quest Saga, Collector Edition, Lore Book, Soundtrack",
        ),
        ("racing games", "late braking and perfect laps", "Wheel Stand, Rally Game, Pedal Set, Kart Game, Shift Knob"),
        ("indie games", "small teams with odd ideas", "Puzzle Game, Pixel Adventure, Roguelike, Story Game"),
        ("retro gaming", "cartridges and pixels", "Handheld Console, Arcade Stick, Cartridge Case, Retro Adapter"),
    ),
    _category(
        "Science Fiction",
        16.0,
        ("space opera", "fleets, empires and far stars", "Fleet Novel, Galaxy Trilogy, Star Chronicle, Outpost Story"),
        ("cyberpunk", "neon, code and rain", "Neon Thriller, Hacker Novel, Android Story, Grid Anthology"),
        ("time travel", "paradoxes and second chances", "Paradox Novel, Century Loop, Clockwork Story, Timeline Saga"),
        ("first contact", "voices from elsewhere", "Signal Novel, Visitor Story, Language Novel, Orbit Anthology"),
    ),
    _category(
        "Crime Novels",
        15.0,
        ("nordic noir", "snow, silence and old guilt", "Winter Case, Fjord Mystery, Inspector Novel, Cold File"),
        (
            "cosy mysteries",
            "a village, a tea shop and a body",
            "Tea Room Mystery, Village Case, Vicar Mystery, Cat Mystery",
        ),
        ("legal thrillers", "the court and what it hides", "Verdict Novel, Witness Thriller, Jury Novel, Appeal"),
        ("true crime", "real cases, told with care", "Case Report, Cold Case Story, Trial Account, Archive Book"),
    ),
    _category(
        "Parenting",
        26.0,
        ("newborns", "the first hundred nights", "Swaddle, Night Light, Baby Carrier, Bottle Set, Baby Monitor"),
        ("toddlers", "small steps and big feelings", "Balance Bike, Learning Tower, Snack Box, Potty, Rain Suit"),
        ("school age", "homework, lunch and lost gloves", "School Bag, Lunch Tin, Pencil Case, Globe, Desk Lamp"),
        (
            "reading aloud",
            "a story before sleep",
            "Picture Book, Bedtime Story, Fairy Tale Set, Poem Book, Finger Puppet",
        ),
    ),
    _category(
        "Pets",
        24.0,
        ("dogs", "walks in any weather", "Dog Harness, Chew Toy, Dog Bed, Retractable Lead, Dog Coat"),
        ("cats", "naps, claws and windowsills", "Scratching Post, Feather Wand, Cat Tunnel, Litter Mat, Cat Tree"),
        (
            "aquariums",
            "a quiet underwater garden",
            "Aquarium Filter, Driftwood, Water Test, Plant Substrate, Air Stone",
        ),
        ("birds", "visitors at the feeder", "Seed Feeder, Nest Box, Bird Bath, Suet Cake, Field Guide"),
    ),
    _category(
        "Skincare",
        22.0,
        ("daily care", "three steps in the morning", "Gel Cleanser, Day Cream, Toner, Sun Fluid, Lip Balm"),
        ("night care", "repair while you sleep", "Night Serum, Retinal Cream, Sleep Mask, Eye Cream, Face Oil"),
        ("sensitive skin", "calm for easily irritated skin", "Oat Lotion, Barrier Cream, Thermal Mist, Gentle Balm"),
        ("shaving", "a close and unhurried shave", "Safety Razor, Shaving Brush, Shaving Soap, Aftershave, Alum Block"),
    ),
    _category(
        "Travel",
        66.0,
        (
            "city breaks",
            "a weekend with one small bag",
            "Cabin Bag, City Guide, Packing Cube, Day Sling, Foldable Tote",
        ),
        ("train journeys", "borders by rail", "Rail Atlas, Neck Pillow, Travel Blanket, Journal, Eye Mask"),
        ("beach holidays", "salt, sand and long books", "Beach Towel, Snorkel Set, Parasol, Dry Bag, Cool Box"),
        ("long trips", "months on the road", "Travel Pack, Money Belt, Water Filter, Universal Adapter, First Aid Kit"),
    ),
    _category(
        "Electronics",
        95.0,
        ("headphones", "silence, then music", "Studio Headphone, Earbuds, Headphone Stand, Portable Amp, Ear Cushion"),
        ("smart home", "lights and locks that listen", "Smart Plug, Door Sensor, Thermostat, Motion Lamp, Home Hub"),
        ("desk setup", "a good place to work", "Mechanical Keyboard, Monitor Arm, Desk Mat, Trackball, Webcam"),
        ("makers", "solder, sensors and 3D prints", "Soldering Iron, Sensor Kit, Filament, Logic Analyser, Breadboard"),
    ),
)

TOPICS_PER_CATEGORY = 4

ADJECTIVES: tuple[str, ...] = (
    "Quiet", "Bright", "Classic", "Compact", "Everyday", "Featherlight", "Handmade", "Honest", "Little", "Modern",
    "Northern", "Original", "Patient", "Practical", "Rugged", "Simple", "Smooth", "Steady", "Sunday", "Tidy",
    "Timeless", "Trusty", "Warm", "Wild",
)  # fmt: skip

MAKERS: tuple[str, ...] = (
    "Alder", "Ashby", "Birch & Co", "Brook", "Calder", "Cove", "Dale", "Ember", "Fenwick", "Finch",
    "Gale", "Harbour", "Hazel", "Heron", "Ivo", "Juniper", "Kestrel", "Larch", "Linden", "Lumen",
    "Maren", "Moss", "Norra", "Oakley Row", "Orrin", "Pike", "Quill", "Rook", "Rowan", "Sable",
    "Sorrel", "Tarn", "Thistle", "Umber", "Vale", "Wren", "Yarrow", "Zephyr",
)  # fmt: skip

TEXTS: tuple[str, ...] = (
    "This {adjective} {noun} by {maker} is made for {phrase}. Part of our {topic} selection.",
    "For {phrase}: this {noun} is what {topic} needs. {maker} has made it {adjective} since the first edition.",
    "{maker} thought about {phrase} and made one {adjective} {noun}. Loved by people who care about {topic}.",
    "If {topic} is your thing, you know {phrase}. This {adjective} {noun} belongs there.",
)

# What a text says of quality, from the worst to the best.
PRAISE: tuple[str, ...] = (
    " Returned items, sold as seen.",
    " A budget version.",
    "",
    " Recommended by our testers.",
    " Award winner, tested to last a lifetime.",
)
