"""Synthetic faces, drawn from parameters: `convoy:synthetic_faces`; `convoy:face_points` has the same pictures with the
places of eyes, nose and mouth. They are no photographs, and nobody's likeness.

A person is a set of features: proportions, colours of skin, hair, eyes and lips, brows, glasses, moles. The pictures of
a person differ by pose (turned, nodding, tilted, nearer or farther), light, expression, background and noise. So there
is something to learn, and it is not a picture's mean colour: light and background change that more than skin does. Each
call gives the same bytes. What a network reaches here says nothing about real faces.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIDE_PX = 64
FINER = 3  # drawn so many times larger, then made smaller: smooth edges
NUM_PEOPLE, NUM_PICTURES = 80, 10
SIDES = ("train", "train", "test", "train", "val", "train", "test", "train")
MOST_TURN, MOST_NOD, MOST_TILT = 0.45, 0.25, 0.2  # radians, to either side
LANDMARKS = (  # left and right as one sees the picture
    "left_eye_corner", "left_eye", "right_eye", "right_eye_corner", "nose", "left_mouth", "right_mouth",
)  # fmt: skip
CIRCLE = np.stack([f(np.linspace(0, 2 * np.pi, 25)) for f in (np.cos, np.sin)])
Colour = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True)
class Person:
    """What stays the same; lengths as shares of half the picture's side."""

    skin: Colour
    hair: Colour
    iris: Colour
    lips: Colour
    half_width: float
    half_height: float
    chin: float  # width of the lower half, relative to the upper
    eye_apart: float
    eye_height: float
    eye_size: float
    brow: tuple[float, float, float]  # above the eye, thickness, slant
    nose: tuple[float, float]  # length, half width
    mouth: tuple[float, float, float]  # below the nose's tip, half width, thickness
    hairline: float  # how far the hair reaches down
    hair_sides: float  # how far down it hangs
    ears: float
    glasses: float  # radius, 0: none
    moles: tuple[tuple[float, float], ...]

    @property
    def nose_tip(self) -> float:
        return self.eye_height + self.nose[0]

    @property
    def mouth_height(self) -> float:
        return self.nose_tip + self.mouth[0]


@dataclass(frozen=True)
class Shot:
    """What differs between the pictures of a person."""

    turn: float
    nod: float
    tilt: float
    size: float
    shift: tuple[float, float]
    smile: float  # -1…1
    mouth_open: float  # 0…1
    eyes_open: float  # 0.3…1
    brows_up: float


@dataclass(frozen=True)
class Picture:
    """A picture of a person, and what is known of it."""

    name: str  # of the file: person_007/3.jpg
    person: str
    side: str
    data: bytes  # JPEG, RGB, SIDE_PX on each side
    points_xy: np.ndarray  # (P, 2): LANDMARKS, in pixels from the centre of the first


def draw_person(generator: np.random.Generator) -> Person:
    """Features by chance."""
    uniform = generator.uniform
    tone = uniform()
    skin = np.array([238, 200, 170]) * (1 - tone) + np.array([96, 62, 44]) * tone + uniform(-10, 10, 3)
    hairs = np.array([[30, 24, 22], [84, 54, 32], [190, 150, 90], [150, 70, 40], [170, 170, 170]])
    irises = np.array([[70, 45, 25], [60, 95, 130], [70, 110, 70], [110, 90, 60]])
    lips = skin * 0.75 + np.array([70, 10, 20]) * uniform(0.2, 0.7)
    return Person(
        skin=as_colour(skin),
        hair=as_colour(hairs[generator.integers(len(hairs))] + uniform(-12, 12, 3)),
        iris=as_colour(irises[generator.integers(len(irises))] + uniform(-10, 10, 3)),
        lips=as_colour(lips),
        half_width=uniform(0.5, 0.64),
        half_height=uniform(0.68, 0.82),
        chin=uniform(0.62, 1.0),
        eye_apart=uniform(0.2, 0.3),
        eye_height=uniform(-0.16, -0.02),
        eye_size=uniform(0.075, 0.12),
        brow=(uniform(0.1, 0.18), uniform(0.02, 0.06), uniform(-0.05, 0.06)),
        nose=(uniform(0.2, 0.34), uniform(0.05, 0.12)),
        mouth=(uniform(0.12, 0.2), uniform(0.14, 0.25), uniform(0.025, 0.06)),
        hairline=uniform(0.2, 0.5),
        hair_sides=uniform(-0.3, 0.9),
        ears=uniform(0.08, 0.16),
        glasses=float(uniform(0.13, 0.18)) if uniform() < 0.25 else 0.0,
        moles=tuple((uniform(-0.35, 0.35), uniform(0.0, 0.5)) for _ in range(int(generator.integers(0, 3)))),
    )


def draw_shot(generator: np.random.Generator) -> Shot:
    """Pose and expression by chance."""
    uniform = generator.uniform
    return Shot(
        turn=uniform(-MOST_TURN, MOST_TURN),
        nod=uniform(-MOST_NOD, MOST_NOD),
        tilt=uniform(-MOST_TILT, MOST_TILT),
        size=uniform(0.88, 1.08),
        shift=(uniform(-0.06, 0.06), uniform(-0.06, 0.06)),
        smile=uniform(-0.6, 1.0),
        mouth_open=max(0.0, uniform(-0.6, 1.0)),
        eyes_open=uniform(0.45, 1.0),
        brows_up=uniform(-0.03, 0.06),
    )


def as_colour(values: np.ndarray) -> Colour:
    """Whole levels, 0…255."""
    red, green, blue = np.clip(np.rint(values), 0, 255).astype(int).tolist()
    return red, green, blue


def darker(colour: Colour, factor: float) -> Colour:
    return as_colour(np.array(colour) * factor)


class Canvas:
    """A picture in which lengths are shares of half the side, and places of the face turn with the head."""

    def __init__(self, image: Image.Image, person: Person, shot: Shot) -> None:
        self.draw, self.half = ImageDraw.Draw(image), image.width / 2
        self.person, self.shot = person, shot

    def place(self, x: np.ndarray | float, y: np.ndarray | float) -> list[Point]:
        """Where points of the face, seen from the front, stand once the head has turned: on an ellipsoid."""
        wide, tall = self.person.half_width * 1.1, self.person.half_height * 1.1
        x = wide * np.sin(np.arcsin(np.clip(x / wide, -1, 1)) + self.shot.turn)
        y = tall * np.sin(np.arcsin(np.clip(y / tall, -1, 1)) + self.shot.nod)
        return self.flat(x, y)

    def flat(self, x: np.ndarray | float, y: np.ndarray | float) -> list[Point]:
        """Of points that do not turn, as the outline: tilt, size, shift; in pixels."""
        cosine, sine = np.cos(self.shot.tilt), np.sin(self.shot.tilt)
        x, y = (x * cosine - y * sine) * self.shot.size, (x * sine + y * cosine) * self.shot.size
        across, down = (1 + x + self.shot.shift[0]) * self.half, (1 + y + self.shot.shift[1]) * self.half
        return list(zip(np.atleast_1d(across).tolist(), np.atleast_1d(down).tolist(), strict=True))

    def blob(self, x: float, y: float, wide: float, tall: float, colour: Colour) -> None:
        """An ellipse on the face."""
        self.draw.polygon(self.place(x + wide * CIRCLE[0], y + tall * CIRCLE[1]), fill=colour)

    def stroke(self, x: np.ndarray, y: np.ndarray, thickness: float, colour: Colour) -> None:
        """A line on the face."""
        width = max(1, round(thickness * self.half * self.shot.size))
        self.draw.line(self.place(x, y), fill=colour, width=width, joint="curve")

    def outline(self, grow: float, top: float, bottom: float, colour: Colour) -> None:
        """The head's shape, larger by `grow`, between two heights; its lower half narrows to the chin."""
        p = self.person
        heights = np.linspace(max(-1.0, top), min(1.0, bottom), 40)
        widths = (p.half_width + grow) * np.sqrt(np.clip(1 - heights**2, 0, 1))
        widths = np.where(heights > 0, widths * (1 - (1 - p.chin) * heights), widths)
        down = heights * (p.half_height + grow)
        self.draw.polygon([*self.flat(widths, down), *reversed(self.flat(-widths, down))], fill=colour)


def draw_face(person: Person, shot: Shot, ground: Image.Image) -> Image.Image:
    """The face on a background, whose size the picture has."""
    canvas = Canvas(ground, person, shot)
    canvas.outline(0.1, -1.0, person.hair_sides, person.hair)
    for side in (-1, 1):
        [(x, y)] = canvas.flat(side * (person.half_width + 0.02) + 0.1 * shot.turn, person.eye_height + 0.1)
        reach = person.ears * canvas.half * shot.size
        canvas.draw.ellipse(
            (x - reach * 0.6, y - reach, x + reach * 0.6, y + reach), fill=darker(person.skin, 0.88)
        )
    canvas.outline(0.0, -1.0, 1.0, person.skin)
    canvas.outline(0.02, -1.0, -1.0 + person.hairline, person.hair)
    draw_eyes(canvas)
    draw_nose_and_mouth(canvas)
    for x, y in person.moles:
        canvas.blob(x, y, 0.02, 0.02, darker(person.skin, 0.45))
    return ground


def draw_eyes(canvas: Canvas) -> None:
    """Eyes, brows, glasses."""
    person, shot = canvas.person, canvas.shot
    above, thickness, slant = person.brow
    for side in (-1, 1):
        x, y, size = side * person.eye_apart, person.eye_height, person.eye_size
        tall = size * 0.6 * shot.eyes_open
        canvas.blob(x, y, size, tall, (245, 245, 245))
        canvas.blob(x, y, min(size * 0.5, tall), tall * 0.95, person.iris)
        canvas.blob(x, y, tall * 0.4, tall * 0.4, (15, 15, 15))
        height = y - above - shot.brows_up
        ends = x + side * size * np.array([-1, 1.2])
        canvas.stroke(ends, height + slant * np.array([1, -1]), thickness, darker(person.hair, 0.8))
        if person.glasses:
            rim = person.glasses * CIRCLE
            canvas.stroke(x + rim[0], y + 0.8 * rim[1], 0.02, (25, 25, 30))


def draw_nose_and_mouth(canvas: Canvas) -> None:
    """The nose's shadow and tip; lips, curved by the smile, and what is between them."""
    person, shot = canvas.person, canvas.shot
    wide, tip = person.nose[1], person.nose_tip
    bridge = np.array([wide * 0.4, wide, -wide]), np.array([person.eye_height + 0.05, tip, tip])
    canvas.stroke(*bridge, 0.025, darker(person.skin, 0.72))
    _, half, thickness = person.mouth
    across = np.linspace(-half, half, 9)
    if shot.mouth_open:
        canvas.blob(0, person.mouth_height + 0.03, half * 0.75, 0.07 * shot.mouth_open, (70, 25, 30))
    canvas.stroke(across, lip_height(person, shot, across), thickness, person.lips)


def lip_height(person: Person, shot: Shot, across: np.ndarray) -> np.ndarray:
    """How far down the lips are, so far from their middle."""
    heights: np.ndarray = person.mouth_height - 0.08 * shot.smile * (across / person.mouth[1]) ** 2
    return heights


def points_of(canvas: Canvas) -> np.ndarray:
    """Where LANDMARKS stand on what is drawn there: (P, 2), in its pixels."""
    person, shot = canvas.person, canvas.shot
    apart, size, half = person.eye_apart, person.eye_size, person.mouth[1]
    corners = np.array([-half, half])
    x = np.array([-apart - size, -apart, apart, apart + size, 0, *corners])
    y = np.array([*[person.eye_height] * 4, person.nose_tip, *lip_height(person, shot, corners)])
    return np.array(canvas.place(x, y))


def draw_ground(generator: np.random.Generator, side: int) -> Image.Image:
    """A smooth background of a few colours."""
    mesh = (generator.uniform(30, 225, (3, 3, 1)) + generator.uniform(-30, 30, (3, 3, 3))).astype(np.uint8)
    return Image.fromarray(mesh).resize((side, side), Image.Resampling.BICUBIC)


def light(picture: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Light from a side, of a strength and a colour, and the camera's noise: (S, S, 3) → uint8."""
    S = len(picture)
    y, x = np.mgrid[:S, :S] / (S - 1) * 2 - 1
    angle, slope = generator.uniform(0, 2 * np.pi), generator.uniform(0, 0.45)
    shade = generator.uniform(0.65, 1.2) * (1 + slope * (x * np.cos(angle) + y * np.sin(angle)))
    lit = picture * shade[:, :, None] * generator.uniform(0.9, 1.1, 3) + generator.normal(0, 4, picture.shape)
    return np.clip(np.rint(lit), 0, 255).astype(np.uint8)


def draw_pictures(num_people: int, num_pictures: int) -> Iterator[Picture]:
    """So many pictures of each of so many people. Nobody changes where others are added.

    Of each eight people five are of train, one of val, two of test.
    """
    for number in range(num_people):
        generator = np.random.default_rng([5, number])
        person, name = draw_person(generator), f"person_{number:03d}"
        for place in range(num_pictures):
            shot = draw_shot(generator)
            large = draw_face(person, shot, draw_ground(generator, SIDE_PX * FINER))
            soft = large.reduce(FINER)
            buffer = io.BytesIO()
            Image.fromarray(light(np.asarray(soft, float), generator)).save(buffer, "JPEG", quality=92)
            points = (points_of(Canvas(large, person, shot)) + 0.5) / FINER - 0.5
            side = SIDES[number % len(SIDES)]
            yield Picture(f"{name}/{place}.jpg", name, side, buffer.getvalue(), points)


def synthetic_faces(num_people: int = NUM_PEOPLE, num_pictures: int = NUM_PICTURES) -> dict[str, bytes]:
    """Files by name: the pictures; `val_ids.txt`, `test_ids.txt`, `train_ids.txt`."""
    files: dict[str, bytes] = {}
    sides: dict[str, dict[str, None]] = {side: {} for side in SIDES}
    for picture in draw_pictures(num_people, num_pictures):
        files[picture.name] = picture.data
        sides[picture.side][picture.person] = None
    return files | {f"{side}_ids.txt": "\n".join(names).encode() for side, names in sides.items()}


def face_points(num_people: int = NUM_PEOPLE, num_pictures: int = NUM_PICTURES) -> dict[str, bytes]:
    """Files by name: the pictures; `points.csv` with their LANDMARKS, sides and, as groups, people."""
    files: dict[str, bytes] = {}
    rows = [",".join(["path", *(f"{name}_{axis}" for name in LANDMARKS for axis in "xy"), "split", "group"])]
    for picture in draw_pictures(num_people, num_pictures):
        files[picture.name] = picture.data
        places = [f"{value:.2f}" for value in picture.points_xy.ravel()]
        rows.append(",".join([picture.name, *places, picture.side, picture.person]))
    return files | {"points.csv": "\n".join(rows).encode()}
