"""The classes of CIFAR-10 and CIFAR-100 by name: which are confused, which belong together."""

from collections.abc import Iterable

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CONFUSED10 = {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"}

SUPERCLASSES = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
"""Superclasses of CIFAR-100 in ascending order, each with its fine classes in ascending order of fine id, which is alphabetical."""


def is_cifar10(class_names: Iterable[str]) -> bool:
    """Whether these are the classes of CIFAR-10, in any order."""
    return set(class_names) == set(CIFAR10)


def is_cifar100(class_names: Iterable[str]) -> bool:
    """Whether these are the 100 fine classes of CIFAR-100, in any order."""
    return set(class_names) == {name for members in SUPERCLASSES.values() for name in members}


def confused_classes(class_names: Iterable[str]) -> dict[str, str] | None:
    """Return the published map of asymmetric noise: the other class of a pair, or the next one of a superclass; None elsewhere."""
    names = set(class_names)
    if is_cifar10(names):
        return CONFUSED10
    if is_cifar100(names):
        return {name: members[(place + 1) % 5] for members in SUPERCLASSES.values() for place, name in enumerate(members)}
    return None
