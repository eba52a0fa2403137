"""Render the embedded data set: apples, cherries and tomatoes on a turntable, with Mitsuba 3.

Each fruit is a displaced sphere with a colour per vertex, its stem and its sepals, in a room of its own (one photo
session). All lengths are in body radii, angles in radians, colours in sRGB from 0 to 1; +y is the stem end.
"""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 100  # px, the size of Fruits-360
OVERSAMPLING = 2  # rendered larger and reduced, so that a box filter (deterministic across threads) does not alias
SAMPLES = 49  # per rendered pixel: noise below that of JPEG
ROWS, COLUMNS = 220, 440  # of the body's grid: one vertex is about half a pixel
FRUITS = {"apple": (127, 16), "cherry": (127, 16), "tomato": (50, 10)}  # images, individual fruits
RAINIER = 0.12  # share of the cherries that are yellow under a red blush

Array = np.ndarray
Generator = np.random.Generator


@dataclass
class Part:
    """A mesh of one material: vertices (V, 3), faces (F, 3), colors (V, 3) in sRGB."""

    vertices: Array
    faces: Array
    colors: Array
    roughness: float = 0.6
    coat: float = 0.0


# Building blocks ------------------------------------------------------------------------------------------------


def bump(x: Array, center: float, width: float) -> Array:
    """Evaluate a Gaussian of height 1."""
    return np.exp(-(((x - center) / width) ** 2))


def ramp(x: Array, low: float, high: float) -> Array:
    """Step smoothly from 0 at `low` to 1 at `high`."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def mix(first: Array, second: Array, share: Array) -> Array:
    """Blend two colors, (3,) or (N, 3), by a share (N,) of the second."""
    return first + (np.asarray(second) - first) * share[:, None]


def waves(points: Array, rng: Generator, frequency: float, count: int = 24) -> Array:
    """Draw a smooth random field (N,) of unit variance over points (N, 3)."""
    vectors = rng.normal(size=(3, count)) * frequency
    return np.cos(points @ vectors + rng.uniform(0, 2 * np.pi, count)).sum(axis=1) * np.sqrt(2 / count)


def stripes(phi: Array, rng: Generator, low: int, high: int) -> Array:
    """Draw a random function (N,) of unit variance of the longitude, made of whole waves per turn."""
    orders = rng.integers(low, high, size=10)
    return np.cos(phi[:, None] * orders + rng.uniform(0, 2 * np.pi, 10)).sum(axis=1) * np.sqrt(0.2)


def specks(directions: Array, rng: Generator, count: int, radius: float) -> Array:
    """Scatter soft dots over the sphere: strength (N,) from 0 to 1 at unit directions (N, 3)."""
    centers = rng.normal(size=(count, 3))
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    radii = radius * rng.uniform(0.5, 1.3, count)
    strengths = rng.uniform(0.4, 1, count)
    # Dot by dot: all at once, the distances would take hundreds of megabytes.
    field = np.zeros(len(directions))
    for center, size, strength in zip(centers, radii, strengths, strict=True):
        near = np.flatnonzero(directions @ center > np.cos(2.5 * size))
        field[near] = np.maximum(field[near], strength * bump(np.arccos(directions[near] @ center), 0, size))
    return field


def grid_faces(rows: int, columns: int, wrap: bool) -> Array:
    """Triangulate a grid of vertices, closed around its columns if `wrap`: faces (F, 3)."""
    index = np.arange(rows * columns).reshape(rows, columns)
    right = np.roll(index, -1, axis=1)
    quads = np.stack([index[:-1], index[1:], right[1:], right[:-1]], axis=-1)[:, : None if wrap else columns - 1]
    return np.concatenate([quads[..., [0, 2, 1]].reshape(-1, 3), quads[..., [0, 3, 2]].reshape(-1, 3)])


def sphere() -> tuple[Array, Array, Array]:
    """Return polar angles from the stem end (N,), longitudes (N,) and unit directions (N, 3) of the body's grid."""
    # The poles themselves stay open (a hole far below a pixel), where triangles would have no area and no normal.
    theta, phi = np.meshgrid(
        np.linspace(0.002, np.pi - 0.002, ROWS), np.arange(COLUMNS) * 2 * np.pi / COLUMNS, indexing="ij"
    )
    theta, phi = theta.ravel(), phi.ravel()
    return theta, phi, np.stack([np.sin(theta) * np.cos(phi), np.cos(theta), np.sin(theta) * np.sin(phi)], axis=1)


def tube(path: Array, radii: Array, colors: Array, sides: int = 16) -> Part:
    """Sweep a circle of radii (P,) along a path (P, 3) with colors (P, 3)."""
    tangents = np.gradient(path, axis=0)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    first = np.cross(tangents, [0.3, 0.1, 1.0])
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(tangents, first)
    angle = np.arange(sides)[:, None] * 2 * np.pi / sides
    rings = np.cos(angle)[None] * first[:, None] + np.sin(angle)[None] * second[:, None]
    vertices = path[:, None] + rings * radii[:, None, None]
    return Part(vertices.reshape(-1, 3), grid_faces(len(path), sides, wrap=True), np.repeat(colors, sides, axis=0))


def stem(rng: Generator, base: float, length: float, radius: float, bend: float, colors: tuple) -> Part:
    """Grow a bent stem from height `base` with a thicker end, its color running between two."""
    along = np.linspace(0, 1, 40)
    heading = rng.uniform(0, 2 * np.pi)
    offset = bend * length * along**2
    path = np.stack(
        [offset * np.cos(heading), base + length * along * (1 - 0.3 * bend * along), offset * np.sin(heading)], axis=1
    )
    flare = 1 + 0.7 * ramp(along, 0.8, 1) + 0.4 * bump(along, 0, 0.1)
    flare[-1] = 0.01  # closes the end
    shade = 1 + 0.12 * waves(path / radius, rng, 0.5)[:, None]
    return tube(path, radius * flare, mix(np.array(colors[0]), colors[1], along) * shade)


def sepals(
    rng: Generator, body: Array, count: int, length: float, width: float, lift: float, color: Array
) -> list[Part]:
    """Lay pointed leaves around the pole in row 0 of `body` (ROWS, COLUMNS, 3), close to its surface."""
    rows, columns = 24, 9
    along, across = np.meshgrid(np.linspace(0, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
    leaves = []
    for leaf in range(count):
        angle = 2 * np.pi * (leaf + rng.uniform(-0.2, 0.2)) / count + rng.normal(0, 0.3) * along**2
        reach = 0.02 + length * rng.uniform(0.75, 1.15) * along
        half = width * np.sqrt(1 - along) * (0.35 + 1.3 * along * (1 - along)) * across
        x, z = reach * np.cos(angle) - half * np.sin(angle), reach * np.sin(angle) + half * np.cos(angle)
        meridian = body[: ROWS // 2, int(angle.mean() / (2 * np.pi) * COLUMNS) % COLUMNS]
        ground = np.interp(np.hypot(x, z), np.hypot(meridian[:, 0], meridian[:, 2]), meridian[:, 1])
        fold = 0.25 * width * across**2  # a keel along the middle catches the light
        height = ground + np.sign(meridian[0, 1]) * (0.02 + lift * rng.uniform(0.1, 1) * length * along**2 + fold)
        tint = color * (1 + 0.25 * along - 0.2 * (1 - np.abs(across)) + rng.normal(0, 0.06)).reshape(-1, 1)
        vertices = np.stack([x, height, z], axis=-1).reshape(-1, 3)
        leaves.append(Part(vertices, grid_faces(rows, columns, wrap=False), tint))
    return leaves


# The three fruits -----------------------------------------------------------------------------------------------


def shape_apple(rng: Generator) -> Array:
    """Model an apple's body (N, 3): shoulders wider than the base, two dimples, five lobes at the base."""
    theta, phi, direction = sphere()
    lobes = np.cos(5 * phi + rng.uniform(0, 6)) + 0.4 * np.cos(phi * 2 + rng.uniform(0, 6))
    radius = 1 + rng.uniform(0.01, 0.035) * lobes * bump(theta, np.pi, 1.1)
    radius += rng.uniform(0.005, 0.02) * np.cos(5 * phi + rng.uniform(0, 6)) * bump(theta, 0.5, 0.5)
    radius += rng.uniform(0.008, 0.025) * waves(direction, rng, 1.3) + 0.002 * waves(direction, rng, 6)
    radius -= rng.uniform(0.4, 0.6) * bump(theta, 0, rng.uniform(0.26, 0.36))
    radius -= rng.uniform(0.25, 0.4) * bump(theta, np.pi, rng.uniform(0.22, 0.34))
    body = direction * radius[:, None]
    body[:, [0, 2]] *= 1 + rng.uniform(0.0, 0.14) * np.cos(theta)[:, None]
    return body * [1, rng.uniform(0.84, 1.02), rng.uniform(0.96, 1.04)]


def paint_apple(rng: Generator, ripeness: float) -> Array:
    """Color an apple's skin (N, 3): striped blush on its sunny side over a ground color, lenticels, russet."""
    theta, phi, direction = sphere()
    ground = mix(np.array([0.55, 0.64, 0.27]), [0.90, 0.77, 0.37], np.array([rng.uniform(0, 0.4) + 0.6 * ripeness]))[0]
    blush = np.array([0.74 - 0.14 * ripeness * rng.random(), 0.06 + 0.08 * rng.random(), 0.14 + 0.08 * rng.random()])
    sunny = direction @ (lambda v: v / np.linalg.norm(v))(rng.normal(size=3) * [1, 0.5, 1])
    streaks = 0.5 * stripes(phi, rng, 5, 30) + 0.5 * stripes(phi + 0.03 * waves(direction, rng, 4), rng, 25, 90)
    streaks *= rng.uniform(0.15, 0.9) * np.sin(theta) * (0.7 + 0.4 * waves(direction, rng, 3))
    level = 4 * ripeness - 2 + rng.uniform(0.5, 1.5) * sunny + 0.5 * waves(direction, rng, 2) + streaks
    level -= 1.5 * bump(theta, 0, 0.3) + 0.8 * bump(theta, np.pi, 0.4)
    coverage = ramp(level, -1, rng.uniform(1.5, 3))
    skin = mix(ground * (1 + 0.05 * waves(direction, rng, 3)[:, None]), blush, 0.97 * coverage)
    skin = mix(skin, skin * [0.62, 0.5, 0.6], 0.5 * ramp(level + streaks, 2, 4))
    dots = specks(direction, rng, int(rng.integers(120, 420)), rng.uniform(0.012, 0.02))
    skin = mix(skin, [0.88, 0.76, 0.52], rng.uniform(0.3, 0.75) * dots)
    skin = mix(skin, [0.52, 0.40, 0.22], rng.uniform(0.2, 0.9) * bump(theta + 0.05 * stripes(phi, rng, 5, 16), 0, 0.24))
    skin = mix(skin, [0.30, 0.20, 0.10], 0.9 * bump(theta, np.pi, 0.1))
    bruises = specks(direction, rng, int(rng.integers(0, 6)), 0.05)
    return mix(skin, [0.36, 0.24, 0.12], 0.6 * bruises)


def apple(rng: Generator, ripeness: float) -> list[Part]:
    """Grow an apple from green (ripeness 0) to dark red (1)."""
    vertices, colors = shape_apple(rng), paint_apple(rng, ripeness)
    body = vertices.reshape(ROWS, COLUMNS, 3)
    wood = ([0.34, 0.25, 0.12], [0.30, 0.19, 0.10])
    length, thickness, bend = rng.uniform([0.45, 0.03, 0.1], [0.9, 0.05, 0.7])
    shank = stem(rng, body[0, 0, 1] - 0.02, length, thickness, bend, wood)
    dried = sepals(rng, body[::-1], 5, rng.uniform(0.11, 0.18), 0.06, 0.5, np.array([0.30, 0.22, 0.12]))
    skin = Part(vertices, grid_faces(ROWS, COLUMNS, wrap=True), colors, rng.uniform(0.28, 0.5), rng.uniform(0, 0.4))
    return [skin, shank, *dried]


def shape_cherry(rng: Generator) -> Array:
    """Model a cherry's body (N, 3): a heart with a stem cavity and a groove (the suture) along longitude 0."""
    theta, phi, direction = sphere()
    radius = 1 + rng.uniform(0.02, 0.07) * np.cos(2 * phi) * bump(theta, 0.5, 0.7)
    radius += rng.uniform(0.006, 0.02) * waves(direction, rng, 1.3) + 0.003 * waves(direction, rng, 4)
    radius -= rng.uniform(0.3, 0.45) * bump(theta, 0, rng.uniform(0.3, 0.42))
    radius -= rng.uniform(0.03, 0.08) * bump(theta, np.pi, 0.12)
    turn = np.angle(np.exp(1j * phi))
    radius -= rng.uniform(0.015, 0.05) * bump(turn * np.sin(theta), 0, rng.uniform(0.06, 0.16)) * ramp(theta, 3.1, 2.4)
    body = direction * radius[:, None]
    body[:, [0, 2]] *= 1 + rng.uniform(0.02, 0.16) * np.cos(theta)[:, None]
    return body * [rng.uniform(0.84, 0.97), rng.uniform(0.84, 1.04), 1]


def paint_cherry(rng: Generator, ripeness: float) -> Array:
    """Color a cherry's skin (N, 3): yellow under a red blush, bright red, or nearly black, with a suture line."""
    theta, phi, direction = sphere()
    rainier = ripeness < RAINIER
    reds = np.transpose([[0.64, 0.05, 0.09], [0.50, 0.03, 0.08], [0.36, 0.02, 0.06], [0.19, 0.02, 0.04]])
    ground = np.array([np.interp(ripeness, [0.1, 0.3, 0.6, 1], channel) for channel in reds])
    ground = np.array([0.98, 0.80, 0.45]) if rainier else ground
    mottle = 0.04 * waves(direction, rng, 3) + 0.03 * waves(direction, rng, 12)
    skin = ground * (1 + rng.uniform(0.5, 1.5) * mottle[:, None])
    sunny = direction @ rng.normal(size=3) + 0.8 * waves(direction, rng, 1.2) + 0.1 * waves(direction, rng, 9)
    if rainier:
        skin = mix(skin, [0.78, 0.13, 0.12], rng.uniform(0.85, 0.98) * ramp(sunny, -1.8, 0.6))
    else:
        skin = mix(skin, ground * 0.6, rng.uniform(0.5, 0.9) * ramp(sunny, -0.8, 1.6))
    turn = np.angle(np.exp(1j * phi)) * np.sin(theta)
    line = bump(turn, 0, 0.035) * ramp(theta, 0.1, 0.5) * (np.abs(phi - np.pi) > 1)
    skin = mix(skin, skin * [0.7, 0.5, 0.5] + [0.06, 0.02, 0.02], rng.uniform(0.3, 0.9) * line)
    pale = specks(direction, rng, int(rng.integers(100, 400)), 0.012)
    skin = mix(skin, skin + [0.16, 0.08, 0.05], rng.uniform(0.1, 0.5) * pale)
    skin = mix(skin, [0.42, 0.27, 0.15], 0.9 * bump(theta, np.pi, 0.05))
    return mix(skin, [0.58, 0.38, 0.24], 0.85 * ramp(theta, 0.19, 0.13) * (1 - 0.4 * bump(theta, 0, 0.06)))


def cherry(rng: Generator, ripeness: float) -> list[Part]:
    """Grow a cherry from yellow-red (ripeness 0) to nearly black (1), two in three with a stem."""
    vertices, colors = shape_cherry(rng), paint_cherry(rng, ripeness)
    skin = Part(vertices, grid_faces(ROWS, COLUMNS, wrap=True), colors, rng.uniform(0.12, 0.24), rng.uniform(0.5, 1))
    length, radius, bend = rng.uniform(1.8, 3), rng.uniform(0.045, 0.065), rng.uniform(0.1, 0.6)
    shank = stem(rng, vertices[0, 1] - 0.02, length, radius, bend, ([0.42, 0.44, 0.14], [0.40, 0.28, 0.13]))
    return [skin, shank] if rng.random() < 0.67 or ripeness < RAINIER else [skin]


def shape_tomato(rng: Generator) -> Array:
    """Model a tomato's body (N, 3): flattened, ribbed towards the stem, from smooth and round to deeply lobed."""
    theta, phi, direction = sphere()
    ribs = np.cos(rng.integers(5, 10) * phi + 0.6 * stripes(phi, rng, 1, 3)) + 0.2 * stripes(phi, rng, 2, 5)
    furrows = np.exp(1.5 * ribs - 1.5) * (0.25 + bump(theta, 0.4, 1)) * np.sin(theta) * ramp(theta, 3.1, 2)
    radius = 1 - rng.choice([0.01, 0.03, 0.08]) * furrows
    radius += rng.uniform(0.01, 0.03) * waves(direction, rng, 1.2) + 0.002 * waves(direction, rng, 5)
    radius -= rng.uniform(0.15, 0.28) * bump(theta, 0, rng.uniform(0.35, 0.5)) + 0.03 * bump(theta, np.pi, 0.3)
    body = direction * radius[:, None]
    return body * [1, rng.uniform(0.74, 0.96), rng.uniform(0.94, 1.04)]


def paint_tomato(rng: Generator, ripeness: float) -> Array:
    """Color a tomato's skin (N, 3): orange to deep red, paler streaks and green shoulders at the stem, a tip scar."""
    theta, phi, direction = sphere()
    ground = mix(np.array([0.90, 0.36, 0.06]), [0.78, 0.11, 0.05], np.array([ripeness]))[0]
    skin = ground * (1 + 0.05 * waves(direction, rng, 2)[:, None] + 0.02 * waves(direction, rng, 10)[:, None])
    shoulder = bump(theta + 0.08 * waves(direction, rng, 3) + 0.05 * stripes(phi, rng, 8, 40), 0, rng.uniform(0.5, 0.9))
    green = rng.choice([0.0, 0.35, 0.8])
    skin = mix(skin, [0.84, 0.50, 0.10], rng.uniform(0.2, 0.5) * shoulder)
    skin = mix(skin, [0.42, 0.46, 0.12], green * shoulder)
    gold = specks(direction, rng, int(rng.integers(50, 300)), 0.011)
    skin = mix(skin, [0.92, 0.62, 0.20], rng.uniform(0.1, 0.4) * gold)
    cork = ramp(theta + 0.02 * stripes(phi, rng, 5, 14), 0.2, 0.14) * (1 - 0.6 * bump(theta, 0, 0.07))
    skin = mix(skin, [0.64, 0.50, 0.32], 0.9 * cork)
    return mix(skin, [0.40, 0.25, 0.12], 0.9 * bump(theta + 0.01 * stripes(phi, rng, 3, 9), np.pi, 0.05))


def tomato(rng: Generator, ripeness: float) -> list[Part]:
    """Grow a tomato from orange (ripeness 0) to deep red (1), two in three with its green star."""
    vertices, colors = shape_tomato(rng), paint_tomato(rng, ripeness)
    body = vertices.reshape(ROWS, COLUMNS, 3)
    skin = Part(vertices, grid_faces(ROWS, COLUMNS, wrap=True), colors, rng.uniform(0.18, 0.32), rng.uniform(0.3, 0.8))
    green = np.array([0.24, 0.38, 0.11]) * rng.uniform(0.8, 1.2)
    star = sepals(rng, body, int(rng.integers(5, 7)), rng.uniform(0.5, 0.75), 0.13, 0.7, green)
    shank = stem(rng, body[0, 0, 1] - 0.02, rng.uniform(0.15, 0.45), 0.06, rng.uniform(0.1, 0.8), (green, green * 1.3))
    return [skin, shank, *star] if rng.random() < 0.67 else [skin]


GROW: dict[str, Callable[[Generator, float], list[Part]]] = {"apple": apple, "cherry": cherry, "tomato": tomato}

# The photo session ----------------------------------------------------------------------------------------------


def linear(colors: Array) -> Array:
    """Convert sRGB to linear light (IEC 61966-2-1)."""
    colors = np.clip(colors, 0, 1)
    return np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)


def encode(light: Array) -> Array:
    """Convert linear light to sRGB (IEC 61966-2-1)."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def rotation(axis: int, angle: float) -> Array:
    """Return the (3, 3) rotation about axis 0, 1 or 2."""
    matrix, (i, j) = np.eye(3), ((1, 2), (2, 0), (0, 1))[axis]
    matrix[[i, j, i, j], [i, j, j, i]] = np.cos(angle), np.cos(angle), -np.sin(angle), np.sin(angle)
    return matrix


def light_room(rng: Generator) -> Array:
    """Paint a dim room with one or two bright windows around the camera: radiance (128, 256, 3) by direction."""
    polar, azimuth = np.meshgrid((np.arange(128) + 0.5) * np.pi / 128, np.arange(256) * 2 * np.pi / 256, indexing="ij")
    towards = np.stack(
        [np.sin(polar) * np.sin(azimuth), np.cos(polar), -np.sin(polar) * np.cos(azimuth)], axis=-1
    )  # Mitsuba's layout of an environment map
    room = rng.uniform(0.12, 0.22) * (1 + 0.8 * towards[..., 1:2]) * np.array([1, 0.96, 0.9])
    for share in (1, rng.uniform(0.1, 0.5))[: rng.integers(1, 3)]:
        frame = rotation(1, rng.uniform(-1, 1)) @ rotation(0, -rng.uniform(0.1, 1.1))
        right, up, depth = np.moveaxis(towards @ frame, -1, 0)
        across, above = np.abs(right / depth), np.abs(up / depth)
        width, height = rng.uniform(0.12, 0.5, size=2)
        window = ramp(across, width * 1.1, width * 0.9) * ramp(above, height * 1.1, height * 0.9) * (depth > 0)
        window *= 1 - rng.choice([0.0, 0.9]) * bump(across, 0, 0.1 * width)  # some have a bar
        warmth = rng.uniform(-0.08, 0.08)
        power = share * rng.uniform(2.4, 3.6) / (window * np.sin(polar) * (np.pi / 128) ** 2).sum()
        room = room + window[..., None] * power * np.array([1 + warmth, 1, 1 - warmth])
    return room.astype(np.float32)


def to_mesh(mi, part: Part, name: str):
    """Hand a part to Mitsuba."""
    skin = {
        "type": "principled",
        "base_color": {"type": "mesh_attribute", "name": "vertex_color"},
        "roughness": part.roughness,
        "specular": 0.5,
        "flatness": 0.6,  # light scattered under the skin, roughly
        "clearcoat": part.coat,
        "clearcoat_gloss": 0.95,
    }
    properties = mi.Properties()
    properties["bsdf"] = mi.load_dict({"type": "twosided", "bsdf": skin})
    mesh = mi.Mesh(name, len(part.vertices), len(part.faces), properties, has_vertex_normals=True)
    mesh.add_attribute("vertex_color", 3, linear(part.colors).astype(np.float32).ravel())
    parameters = mi.traverse(mesh)
    parameters["vertex_positions"] = part.vertices.astype(np.float32).ravel()
    parameters["faces"] = part.faces.astype(np.uint32).ravel()
    parameters.update()
    return mesh


def photograph(mi, parts: list[Part], pose: Array, room: Array, seed: int) -> Image.Image:
    """Render parts turned by a pose (3, 3), the body (the first part) filling the frame, on white."""
    turned = [part.vertices @ pose.T for part in parts]
    low, high = turned[0].min(axis=0), turned[0].max(axis=0)
    center, scale = (low + high) / 2, 2 / (high - low)[:2].max()
    placed = [
        Part((vertices - center) * scale, part.faces, part.colors, part.roughness, part.coat)
        for vertices, part in zip(turned, parts, strict=True)
    ]
    camera = {
        "type": "orthographic",
        "to_world": mi.ScalarTransform4f().look_at(origin=[0, 0, 9], target=[0, 0, 0], up=[0, 1, 0]),
        "film": {
            "type": "hdrfilm",
            "width": SIZE * OVERSAMPLING,
            "height": SIZE * OVERSAMPLING,
            "pixel_format": "rgba",
            "rfilter": {"type": "box"},
        },
        "sampler": {"type": "multijitter", "sample_count": SAMPLES},
    }
    scene = {
        "type": "scene",
        "integrator": {"type": "path", "max_depth": 4, "hide_emitters": True},
        "camera": camera,
        "room": {"type": "envmap", "bitmap": mi.Bitmap(room)},
    }
    scene |= {f"part{index}": to_mesh(mi, part, f"part{index}") for index, part in enumerate(placed)}
    pixels = np.array(mi.render(mi.load_dict(scene), seed=seed))
    return develop(pixels)


def develop(pixels: Array) -> Image.Image:
    """Turn linear RGBA (H, W, 4) into an 8-bit photo on white, SIZE pixels wide."""
    photo = encode(pixels[..., :3] + 1 - pixels[..., 3:])
    photo += 0.5 * (ramp(photo, 0, 1) - photo)  # the contrast curve of a camera
    image = Image.fromarray(np.round(photo * 255).astype(np.uint8))
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)


def render_fruit(mi, kind: str, fruit: int, seed: int, output: Path) -> int:
    """Render all views of one fruit into `output`/kind and return their number."""
    images, fruits = FRUITS[kind]
    rng = np.random.default_rng([seed, list(FRUITS).index(kind), fruit])
    parts = GROW[kind](rng, (fruit + rng.random()) / fruits)
    room = light_room(rng)
    tilt, spin, elevation = rng.uniform(0.4, 2.1), rng.uniform(0, 6.3), rng.uniform(0, 0.5)
    views = images // fruits + (fruit < images % fruits)
    for view in range(views):
        turn = 2 * np.pi * (view + rng.uniform(-0.2, 0.2)) / views
        pose = rotation(0, elevation) @ rotation(1, turn) @ rotation(2, tilt) @ rotation(1, spin)
        image = photograph(mi, parts, pose, room, seed=view)
        save(image, output / kind / f"{kind}_{fruit:02d}_{view:02d}.jpg")
    return views


def save(image: Image.Image, path: Path) -> None:
    """Write a JPEG whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    image.save(temporary, format="JPEG", quality=90)
    os.replace(temporary, path)


def main() -> None:
    """Render the data set, or the one fruit named by --only."""
    parser = argparse.ArgumentParser(description="Render the fruit data set with Mitsuba 3.")
    parser.add_argument("--output", type=Path, required=True, help="folder that gets one folder per class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one fruit, such as apple_03")
    arguments = parser.parse_args()
    try:
        import mitsuba as mi
    except ImportError:
        sys.exit("Mitsuba 3 is missing: pip install mitsuba")
    mi.set_variant("scalar_rgb")
    for kind, (_, fruits) in FRUITS.items():
        for fruit in range(fruits):
            name = f"{kind}_{fruit:02d}"
            if arguments.only in (None, name):
                print(f"{name}: {render_fruit(mi, kind, fruit, arguments.seed, arguments.output)} views", flush=True)


if __name__ == "__main__":
    main()
