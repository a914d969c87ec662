//! The words and sentence patterns of the order desk's little world.
//!
//! A pattern's `{slot}` is filled by [`super::grammar`]. All of it was written
//! for this project.

/// Goods: singular, plural.
pub(super) const ITEMS: [(&str, &str); 40] = [
    ("lamp", "lamps"),
    ("chair", "chairs"),
    ("table", "tables"),
    ("kettle", "kettles"),
    ("mirror", "mirrors"),
    ("carpet", "carpets"),
    ("ladder", "ladders"),
    ("bucket", "buckets"),
    ("candle", "candles"),
    ("blanket", "blankets"),
    ("basket", "baskets"),
    ("bottle", "bottles"),
    ("hammer", "hammers"),
    ("pillow", "pillows"),
    ("teapot", "teapots"),
    ("clock", "clocks"),
    ("bench", "benches"),
    ("brush", "brushes"),
    ("shelf", "shelves"),
    ("knife", "knives"),
    ("spoon", "spoons"),
    ("plate", "plates"),
    ("curtain", "curtains"),
    ("drawer", "drawers"),
    ("stove", "stoves"),
    ("fan", "fans"),
    ("tent", "tents"),
    ("rope", "ropes"),
    ("drum", "drums"),
    ("guitar", "guitars"),
    ("radio", "radios"),
    ("camera", "cameras"),
    ("helmet", "helmets"),
    ("saddle", "saddles"),
    ("jacket", "jackets"),
    ("scarf", "scarves"),
    ("glove", "gloves"),
    ("boot", "boots"),
    ("wallet", "wallets"),
    ("umbrella", "umbrellas"),
];

/// Places to deliver to.
pub(super) const CITIES: [&str; 40] = [
    "Oslo", "Lima", "Cairo", "Paris", "Tokyo", "Delhi", "Quito", "Dakar", "Accra", "Turin",
    "Porto", "Ghent", "Malmo", "Gdansk", "Vienna", "Prague", "Dublin", "Athens", "Lisbon",
    "Madrid", "Berlin", "Zurich", "Geneva", "Naples", "Seoul", "Hanoi", "Manila", "Bogota",
    "Havana", "Boston", "Denver", "Dallas", "Ottawa", "Sydney", "Perth", "Nairobi", "Tunis",
    "Riga", "Tallinn", "Bergen",
];

/// First names.
pub(super) const NAMES: [&str; 32] = [
    "Anna", "Ben", "Carla", "David", "Elena", "Felix", "Grace", "Hugo", "Ines", "Jonas", "Karin",
    "Leo", "Maria", "Nils", "Olga", "Paul", "Rosa", "Simon", "Tara", "Uwe", "Vera", "Walter",
    "Yara", "Zoe", "Amir", "Bella", "Chen", "Dora", "Emil", "Fatima", "Goran", "Hana",
];

/// Small numbers as words, from one.
pub(super) const NUMBERS: [&str; 12] = [
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve",
];

pub(super) const DAYS: [&str; 7] = [
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];

pub(super) const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

pub(super) const RELATIONS: [&str; 10] = [
    "sister",
    "brother",
    "mother",
    "uncle",
    "aunt",
    "cousin",
    "neighbour",
    "friend",
    "boss",
    "teacher",
];

pub(super) const PLACES: [&str; 12] = [
    "kitchen", "garden", "office", "attic", "cellar", "garage", "hall", "workshop", "school",
    "cafe", "library", "stable",
];

pub(super) const MOODS: [&str; 10] = [
    "happy", "tired", "nervous", "proud", "sad", "cheerful", "angry", "curious", "calm", "hungry",
];

pub(super) const QUALITIES: [&str; 12] = [
    "rather cold",
    "far too small",
    "quite lovely",
    "a little dusty",
    "very bright",
    "almost empty",
    "badly made",
    "half finished",
    "nearly perfect",
    "too noisy",
    "surprisingly cheap",
    "full of boxes",
];

pub(super) const WEATHERS: [&str; 8] = [
    "wet", "windy", "hot", "grey", "frosty", "mild", "stormy", "foggy",
];

pub(super) const ANIMALS: [&str; 8] = [
    "dog", "cat", "parrot", "horse", "goat", "rabbit", "goose", "donkey",
];

/// Openings of a message.
pub(super) const GREETINGS: [&str; 8] = [
    "Hello,",
    "Hi there,",
    "Good morning.",
    "Good evening.",
    "Dear desk,",
    "Hey,",
    "Hello from {name}.",
    "This is {name}.",
];

/// Endings of a message.
pub(super) const CLOSINGS: [&str; 8] = [
    "Thanks.",
    "Thank you!",
    "Best, {name}",
    "Cheers, {name}",
    "Kind regards, {name}",
    "Many thanks.",
    "Yours, {name}",
    "Bye!",
];

/// The sentence that carries the order; `{goods}` is count and item.
pub(super) const ORDERS: [&str; 18] = [
    "I would like {goods} sent to {city}, please.",
    "Please send {goods} to {city}.",
    "Can you ship {goods} to {city}?",
    "We need {goods} delivered to {city}.",
    "Put me down for {goods}, delivery to {city}.",
    "I order {goods}, to be brought to {city}.",
    "My order is {goods}. Please deliver to {city}.",
    "Please deliver to {city} this order: {goods}.",
    "I want to order {goods} and have it sent to {city} by {day}.",
    "Could you send {goods} to {city} this week?",
    "Our shop would like to order {goods}, with delivery to {city}.",
    "We would like to order {goods}, to be sent to {city}.",
    "Kindly ship {goods} to {city}.",
    "Could I order {goods}? The parcel goes to {city}.",
    "Please pack {goods} and send the parcel to {city}.",
    "The order is {goods}, to {city} please.",
    "Ship to {city}, please: {goods}.",
    "Please note {goods} for delivery to {city}.",
];

/// Sentences that have nothing to do with the order.
pub(super) const FILLERS: [&str; 32] = [
    "My {relation} {name} told me about your shop last {month}.",
    "We moved here in {month} and the {place} is still {quality}.",
    "The weather has been {weather} since {day}, so nobody leaves the {place}.",
    "We waited {small} weeks for somebody to paint the {place}.",
    "On {day} {name} fell in the {place} and now everyone is {mood}.",
    "Last year I sat in the {place} all {month} and felt {mood}.",
    "My {relation} lives nearby and says hello.",
    "Our {animal} sleeps in the {place} and looks {mood}.",
    "In {month} it was so {weather} that the {animal} hid in the {place}.",
    "I spent {small} years at sea, where I was mostly {mood}.",
    "The {place} here is {quality}, as my {relation} likes to say.",
    "Do you remember {name}, who came by on {day}?",
    "You may know my {relation}, a {mood} person who paints the {animal} every {day}.",
    "I saw the {animal} on {day}, but that is another story.",
    "It is {weather} here and I feel {mood}.",
    "My {relation} already has a {animal}, so do not worry about that.",
    "The train was late again and I sat in the station for {small} hours.",
    "Every {day} we meet in the {place} to talk about the {animal}.",
    "{name} and {name} will marry in {month}, and we are all {mood}.",
    "The old {place} of my {relation} is {quality} now.",
    "Before that I asked another shop, but they never answered.",
    "There were {small} people in the {place} on {day}, and the {animal} was {mood}.",
    "I am writing from the {place}, which is {quality} at this hour.",
    "Since {month} my {relation} does nothing but read in the {place}.",
    "As {name} always says, a {mood} {animal} needs a {weather} day.",
    "If it stays {weather}, I will visit {name} after {day}.",
    "We talked about the {animal} for {small} hours, and {name} got quite {mood}.",
    "The {animal} ran off in {month} and came back {small} days later.",
    "Your letter of {day} made my {relation} very {mood}.",
    "Somebody told {name} that your {place} is {quality}.",
    "I hope the {place} of your shop is not as {weather} as ours.",
    "Sorry for the long letter, but I am {mood} today.",
];

/// First sentences of a chatty answer.
pub(super) const CHAT_OPENINGS: [&str; 8] = [
    "What a nice letter, thank you!",
    "Hello and thank you for writing to us.",
    "Good to hear from you again.",
    "Thank you, that made us all {mood}.",
    "Dear friend, how kind of you to write.",
    "Oh, how lovely to hear from you.",
    "Thanks a lot for your message.",
    "It is always a pleasure to read your letters.",
];

/// Sentences of a chatty answer that confirm the order.
pub(super) const CHAT_CONFIRMS: [&str; 8] = [
    "Of course we can send {goods} to {city}.",
    "We have put {goods} aside for you and the parcel to {city} leaves on {day}.",
    "So that is {goods} to {city}, if we read you right.",
    "The way to {city} takes {small} days, so {goods} should be with you soon.",
    "We wrote down {goods} to {city} and hope that the road is not too {weather}.",
    "It will be a joy to pack and ship {goods} to {city}.",
    "You can expect {goods} to come to {city} before {day}.",
    "Consider it done: {goods}, all the way to {city}.",
];

/// Further sentences of a chatty answer.
pub(super) const CHAT_FILLERS: [&str; 14] = [
    "Here in the {place} it is {quality} today, but we are {mood} all the same.",
    "Our {animal} sends its regards too.",
    "By the way, {name} from the {place} asked about you on {day}.",
    "We will check the stock in the {place} and write again before {day}.",
    "Everything is packed by hand, which takes {small} days or so.",
    "It has been {weather} here since {month}, and the {place} is {quality}.",
    "Please tell your {relation} that we said hello.",
    "If anything is not as you like it, just write and {name} will help.",
    "We once had a customer in {city} who was just as {mood}.",
    "The {animal} in the {place} is {mood}, as ever.",
    "Let us know if {day} suits you, or if {month} would be better.",
    "You would like our {place}, it is {quality} at this time of the year.",
    "My {relation} says that every letter deserves a long answer, so here it is.",
    "In {month} we will have new {items}, so do come by.",
];

/// Last sentences of a chatty answer.
pub(super) const CHAT_CLOSINGS: [&str; 6] = [
    "Warm wishes, {name} from the desk",
    "All the best from {name} and the {animal}",
    "See you soon, {name}",
    "Yours, the desk",
    "With kind regards, {name}",
    "Take care, and write again!",
];
