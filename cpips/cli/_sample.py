"""The image that ``cpips demo`` distorts: a mountain lake at dusk, made from noise, so that none need be shipped."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_SIZE = 1024  # of the noise, and the width at which the image is drawn


def landscape() -> NDArray[Any]:
    """``(384,512,3)`` uint8 RGB, the same every time; drawn at twice the size and averaged down."""
    rng = np.random.default_rng(7)
    h, w = 768, _SIZE
    x, y = np.meshgrid(np.linspace(0, w / h, w, dtype=np.float32), np.linspace(0, 1, h, dtype=np.float32))
    shore, sun_x = 0.62, 0.98
    glow = np.exp(-(((x - sun_x) / 0.55) ** 2 + ((y - 0.5) / 0.3) ** 2))

    picture = _mix((0.17, 0.33, 0.60), (0.80, 0.80, 0.82), np.clip(y / shore, 0, 1) ** 1.3)
    picture = _mix(picture, (1.0, 0.80, 0.55), 0.75 * glow)
    far = np.clip(1 / (0.75 - np.minimum(y, 0.6)), 0, 7)  # clouds crowd towards the horizon
    noise = _sample(_fractal(rng, 1.7), 260 * far, 130 * (x - 0.9) * far + 400)
    cloud = _step(0.05, 1.3, noise + 0.25)
    lit = np.clip(0.6 - 4 * np.gradient(noise, axis=0) - 0.12 * noise, 0, 1)
    picture = _mix(picture, _mix((0.50, 0.50, 0.60), (1.0, 0.95, 0.89), lit), 0.9 * cloud)

    for i, (base, rise) in enumerate([(0.47, 0.30), (0.53, 0.17), (0.575, 0.07)]):  # mountains, far to near
        swell = (0.55 + 0.45 * np.cos(2 * np.pi * (x[0] / 1.33 - (0.62, 0.12, 0.42)[i]))) ** 1.5
        ridge = base - rise * swell * np.clip(0.75 + 0.30 * _fractal(rng, 1.75)[0], 0.1, 2)
        rock = -np.abs(_sample(_fractal(rng, 1.6), 620 * (y - 0.8 * ridge), 520 * x + 160 * (y - ridge)))
        slope = np.clip(0.42 + (9, 8, 7)[i] * np.gradient(rock, axis=1) - 3 * np.gradient(rock, axis=0), 0, 1)
        below = y - ridge + 0.03 * rock
        stone = _mix((0.13, 0.14, 0.19), (0.72, 0.62, 0.52), slope)
        wood = _mix((0.03, 0.06, 0.05), (0.26, 0.31, 0.14), slope)
        land = _mix(stone, wood, np.clip(_step(0.16, 0.24, below) + 0.6 * i, 0, 1))
        snow = _step(0.25, 0.6, slope + 0.15) * _step(0.17, 0.03, below) * (i == 0)
        land = _mix(land, _mix((0.62, 0.68, 0.82), (1.0, 0.95, 0.90), slope), 0.92 * snow)
        haze = (0.22, 0.20, 0.06)[i] + 0.30 * np.clip(below / 0.3, 0, 1) * (i < 2)
        land = _mix(land, _mix((0.58, 0.66, 0.80), (0.95, 0.80, 0.68), glow), haze)
        picture = _mix(picture, land, _step(-0.0012, 0.0012, y - ridge))

    depth = np.clip((y - shore) / (1 - shore), 0, 1)
    ripple = _sample(_fractal(rng, 1.1), 60 / (depth + 0.04), 90 * (x - 0.7) / (depth + 0.12) + 500)
    rows = np.clip((2 * shore - y + 0.035 * ripple * depth) * h, 0, shore * h - 2)
    columns = np.clip((x + 0.012 * ripple * depth) * h, 0, w - 1)
    mirror = _mix(picture[rows.astype(int), columns.astype(int)], (0.05, 0.13, 0.20), 0.25 + 0.4 * depth)
    glint = _step(0.9, 1.7, ripple) * np.exp(-(((x - sun_x) / (0.08 + 0.25 * depth)) ** 2)) * 0.35
    water = _mix(mirror, (1.0, 0.93, 0.80), np.clip(glint, 0, 1))
    picture = _mix(picture, water, _step(-0.001, 0.001, y - shore))

    bank = 0.90 - 0.11 * np.cos(2.05 * x[0] - 0.1) ** 2 + 0.01 * _fractal(rng, 1.4)[0]
    for _ in range(44):  # firs on both banks
        left = rng.random() < 0.6
        at, tall = abs(rng.normal(0, 0.16)) if left else 1.34 - abs(rng.normal(0, 0.09)), rng.gamma(9, 0.021)
        foot = bank[int(np.clip(at * h, 0, w - 1))] + 0.03
        top, side = max(0, int((foot - tall) * h)), max(0, int((at - 0.15) * h))
        here = np.s_[top : int(foot * h), side : int((at + 0.15) * h)]
        down, aside = (y[here] - foot + tall) / tall, x[here] - at
        boughs = 0.55 + 0.45 * ((down * tall * 50 + rng.random()) % 1) + 0.3 * np.sin(700 * aside + 300 * down)
        inside = np.abs(aside) < (0.17 * tall * np.clip(down, 0, 1) * boughs + 0.002)
        green = _mix((0.012, 0.03, 0.03), (0.17, 0.21, 0.10), np.clip(aside / tall * 4 + 0.5 * boughs, 0, 1))
        picture[here] = np.where(inside[..., None], green, picture[here])
    soil = _mix((0.05, 0.06, 0.03), (0.24, 0.22, 0.10), np.clip(0.4 + 0.25 * _fractal(rng, 0.8)[:h], 0, 1))
    picture = _mix(picture, soil, _step(0, 0.004, y - bank))
    for foot in np.sort(rng.uniform(0.77, 1.10, 9000)):  # grass, back to front
        start, lean, tall = rng.uniform(0, w), rng.normal(0.25, 0.5), rng.gamma(6, 0.0055) * (0.4 + 2.2 * (foot - 0.75))
        if foot < bank[int(start)]:
            continue
        t = np.arange(0, 1, 1 / (tall * h))
        r, c = ((foot - tall * t) * h).astype(int), (start + lean * tall * h * t**2).astype(int)
        keep = (r < h) & (c >= 0) & (c < w)
        blade = np.array((0.10, 0.14, 0.04)) + rng.random() * np.array((0.42, 0.38, 0.12))
        picture[r[keep], c[keep]] = blade * (0.45 + 0.75 * t[keep, None])

    noise = rng.normal(0, 0.012, (h, w, 1))  # film grain
    small = (picture + noise).reshape(h // 2, 2, w // 2, 2, 3).mean((1, 3))
    return (np.clip(small, 0, 1) * 255 + 0.5).astype(np.uint8)


def _fractal(rng: np.random.Generator, slope: float) -> NDArray[Any]:
    """``(1024,1024)`` noise that tiles, of amplitude 1/f^slope, mean 0 and deviation 1."""
    f = np.hypot(np.fft.fftfreq(_SIZE)[:, None], np.fft.rfftfreq(_SIZE)[None]) + 1e-9
    spectrum = np.fft.rfft2(rng.standard_normal((_SIZE, _SIZE))) / f**slope
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, (_SIZE, _SIZE))
    return (noise / noise.std()).astype(np.float32)


def _sample(noise: NDArray[Any], row: NDArray[Any], column: NDArray[Any]) -> NDArray[Any]:
    """Tiling ``noise`` read between its pixels."""
    r, c = np.floor(row).astype(np.int32), np.floor(column).astype(np.int32)
    v, u = (row - r).astype(np.float32), (column - c).astype(np.float32)
    r, below, c, right = (i & (_SIZE - 1) for i in (r, r + 1, c, c + 1))
    top = noise[r, c] * (1 - u) + noise[r, right] * u
    return top * (1 - v) + (noise[below, c] * (1 - u) + noise[below, right] * u) * v


def _mix(a: ArrayLike, b: ArrayLike, share: NDArray[Any]) -> NDArray[Any]:
    a = np.asarray(a, np.float32)
    return a + (np.asarray(b, np.float32) - a) * np.asarray(share, np.float32)[..., None]


def _step(low: float, high: float, value: NDArray[Any]) -> NDArray[Any]:
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)
