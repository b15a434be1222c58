"""Caption grammar."""

HUES = {
    "red": 0.0,
    "orange": 31.0,
    "yellow": 57.0,
    "green": 125.0,
    "cyan": 182.0,
    "blue": 225.0,
    "purple": 290.0,
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
PLACES = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "center": "in the center",
}
RELATIONS = ("left of", "right of", "above", "below", "in front of", "behind")
NUMBERS = {"two": 2, "three": 3, "four": 4}
