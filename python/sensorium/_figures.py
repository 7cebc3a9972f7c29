"""Pictures, sounds and curves as strings that a page can hold: data URIs and SVG."""

from __future__ import annotations

import base64
import html
import io
import math
import wave
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Curve", "chart", "escape", "mask_png", "picture_png", "spectrogram_png", "wav", "waveform"]

# Stops of a colour map that is even in lightness: dark violet to pale yellow.
_HEAT = np.array([[10, 8, 36], [84, 22, 118], [178, 52, 110], [246, 120, 74], [252, 236, 176]], float)
_SPECTRUM_DB = 55.0  # what lies further below the loudest point is drawn as silence
_MAX_POINTS = 400  # a curve on a screen has no use for more


def escape(text: object) -> str:
    """Return ``text`` with nothing in it that is markup, or that a page may not hold."""
    clean = "".join(
        c if c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f") else "\N{REPLACEMENT CHARACTER}"
        for c in str(text)
    )
    return html.escape(clean.encode("utf-8", "replace").decode())


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _png(pixels: NDArray[np.uint8]) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return _data_uri("image/png", file.getvalue())


def picture_png(image: NDArray[np.generic]) -> str:
    """Return an image as a PNG at its own size; the page scales it with crisp pixels.

    Parameters
    ----------
    image : ndarray, (H, W) or (H, W, 3)
        In [0, 1], or ``uint8``. What lies outside is clipped, NaN is black.
    """
    if image.dtype != np.uint8:
        image = np.rint(np.clip(np.nan_to_num(image.astype(np.float64)), 0, 1) * 255).astype(np.uint8)
    return _png(np.ascontiguousarray(image, np.uint8))


def mask_png(mask: NDArray[np.bool_], colour: tuple[int, int, int]) -> str:
    """Return a mask ``(N, N)`` as a PNG: ``colour`` where it is true, transparent elsewhere."""
    pixels = np.zeros((*mask.shape, 4), np.uint8)
    pixels[..., :3] = colour
    pixels[..., 3] = np.where(mask, 255, 0)
    return _png(pixels)


def wav(samples: NDArray[np.floating], rate: int) -> str:
    """Return a sound ``(samples,)`` in [-1, 1] as a WAV file of 16 bits."""
    data = np.rint(np.clip(np.nan_to_num(samples.astype(np.float64)), -1, 1) * 32767).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(int(rate))
        out.writeframes(data.tobytes())
    return _data_uri("audio/wav", file.getvalue())


def spectrogram_png(samples: NDArray[np.floating], rate: int) -> str:
    """Return the spectrogram of a sound as a PNG, low frequencies at the bottom."""
    size = 1 << min(max(round(math.log2(rate * 0.016)), 6), 12)
    x = np.nan_to_num(samples.astype(np.float64))
    x = np.pad(x, size // 2 if len(x) >= size else size)
    frames = np.lib.stride_tricks.sliding_window_view(x, size)[:: max(size // 4, len(x) // 240)]
    power = np.abs(np.fft.rfft(frames * np.hanning(size), axis=1)) ** 2
    power = power[:, : size // 2].reshape(len(frames), -1, max(1, size // 128)).mean(axis=2)
    level = 10 * np.log10(np.maximum(power, 1e-12))
    level = np.clip(1 + (level - level.max()) / _SPECTRUM_DB, 0, 1) if power.max() > 0 else 0 * level
    at = level.T[::-1] * (len(_HEAT) - 1)
    channels = [np.interp(at, np.arange(len(_HEAT)), _HEAT[:, c]) for c in range(3)]
    return _png(np.stack(channels, axis=-1).astype(np.uint8))


def waveform(samples: NDArray[np.floating], columns: int = 120) -> str:
    """Return the envelope of a sound as SVG."""
    x = np.clip(np.nan_to_num(samples.astype(np.float64)), -1, 1)
    parts = np.array_split(x, columns) if len(x) >= columns else [x[i : i + 1] for i in range(len(x))]
    peak = max((float(np.abs(part).max()) for part in parts if len(part)), default=0.0) or 1.0
    top = [f"{i},{10 - 9.5 * part.max() / peak:.1f}" for i, part in enumerate(parts)]
    bottom = [f"{i},{10 - 9.5 * part.min() / peak:.1f}" for i, part in enumerate(parts)]
    points = " ".join([*top, *reversed(bottom)])
    box = f"0 0 {max(len(parts) - 1, 1)} 20"
    return (
        f'<svg class="wave" viewBox="{box}" preserveAspectRatio="none" aria-hidden="true">'
        f'<polygon points="{points}"/></svg>'
    )


@dataclass(frozen=True)
class Curve:
    """One line of a chart: its name, its points, and a number for its colour."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0


def chart(curves: Sequence[Curve], *, x_label: str, y_label: str) -> str:
    """Return curves as an SVG chart that takes its colours from the page.

    Points that are not finite are left out. Where nothing is left the chart says so.
    """
    drawn = [Curve(c.name, *_thinned(c.x, c.y), c.colour) for c in curves]
    drawn = [c for c in drawn if len(c.x)]
    if not drawn:
        return '<p class="empty">Nothing was recorded.</p>'
    width, height, left, right, top, bottom = 480, 250, 52, 12, 12, 44
    y_ticks = _ticks(min(0.0, *(min(c.y) for c in drawn)), max(max(c.y) for c in drawn))
    x0, x1 = min(min(c.x) for c in drawn), max(max(c.x) for c in drawn)
    x0 = 0.0 if 0 < x0 < 0.2 * x1 else x0
    x1 = next((x for x in _ticks(x0, x1) if x1 < x < x1 + 0.05 * (x1 - x0)), x1)
    y0, y1 = y_ticks[0], y_ticks[-1]

    def px(x: float) -> float:
        return left + (width - left - right) * ((x - x0) / (x1 - x0) if x1 > x0 else 0.5)

    def py(y: float) -> float:
        return height - bottom - (height - top - bottom) * (y - y0) / (y1 - y0)

    parts = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(y_label)}">']
    for y in y_ticks:
        parts.append(
            f'<line class="grid" x1="{left}" x2="{width - right}" y1="{py(y):.1f}" y2="{py(y):.1f}"/>'
        )
        parts.append(f'<text x="{left - 8}" y="{py(y) + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in (x for x in _ticks(x0, x1) if x0 <= x <= x1):
        parts.append(f'<text x="{px(x):.1f}" y="{height - bottom + 18}" text-anchor="middle">{x:g}</text>')
    for c in drawn:
        points = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in zip(c.x, c.y, strict=True))
        parts.append(f'<polyline class="curve c{c.colour}" points="{points}"/>')
        if len(c.x) == 1:
            parts.append(
                f'<circle class="dot c{c.colour}" cx="{px(c.x[0]):.1f}" cy="{py(c.y[0]):.1f}" r="3"/>'
            )
    middle = (left + width - right) / 2
    parts.append(
        f'<text class="label" x="{middle}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    parts.append("</svg>")
    keys = "".join(f'<span class="key c{c.colour}">{escape(c.name)}</span>' for c in drawn)
    return f"<figure>{''.join(parts)}<figcaption>{keys}</figcaption></figure>"


def _thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return the finite points, neighbours averaged where there are too many."""
    pairs = np.array(
        [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)], float
    )
    if len(pairs) > _MAX_POINTS:
        pairs = np.array([block.mean(axis=0) for block in np.array_split(pairs, _MAX_POINTS)])
    return (pairs[:, 0].tolist(), pairs[:, 1].tolist()) if len(pairs) else ([], [])


def _ticks(low: float, high: float) -> list[float]:
    """Return four to eight round numbers from ``low`` or below to ``high`` or above."""
    span = high - low or abs(high) or 1.0
    raw = span / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = unit * next(m for m in (1, 2, 2.5, 5, 10) if raw <= m * unit * (1 + 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * i, 12) for i in range(first, max(last, first + 1) + 1)]
