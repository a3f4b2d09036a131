"""What every probe gives back: one schema, saved as JSON, and the pictures that belong to it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from cpips._utils.io import atomic, finite, read_text
from cpips.errors import ModelError

KEYS = ("probe", "metric", "signature", "settings", "result")


@dataclass(frozen=True)
class Finding:
    """A weakness that a probe found.

    Attributes:
        kind: one word with hyphens, of :data:`KINDS`.
        value, limit: what was measured, and from where on it counts as a weakness; in the unit that ``text`` names.
        text: a sentence for people.
    """

    kind: str
    value: float
    limit: float
    text: str


KINDS = {
    "nan-gradient": "its gradient is not finite somewhere",
    "no-gradient": "it has no gradient, or one that is zero everywhere: nothing can be optimised for it",
    "metamer": "an image that it takes for the reference is visibly another one",
    "ignores-colour": "it does not see the chroma",
    "destroys": "what is optimised for it is worse than what one began with",
    "outplayed": "another metric moves far while this one is held",
    "fragile": "a change that nobody sees turns its judgements",
    "shift-sensitive": "a shift by one pixel costs more than a distortion that everybody sees",
    "warp-sensitive": "a slight rotation or scaling costs more than a distortion that everybody sees",
    "not-equivariant": "its distance changes if both images are turned or moved alike",
    "blind": "distortions that everybody sees are next to nothing to it",
    "not-monotone": "it falls where a distortion grows",
    "saturated": "it hardly rises from strong to stronger distortions",
    "asymmetric": "it depends on which of two images comes first",
    "nonzero": "equal images have a distance",
    "negative": "some distance is below that of equal images",
    "triangle": "a detour is shorter than the direct way",
    "not-finite": "some distance is NaN or infinite",
    "noisy": "it cannot tell one grey level from rounding",
}


@dataclass(frozen=True)
class ProbeResult:
    """What a probe measured of one metric.

    Attributes:
        probe: name of the probe, of :data:`bapps_eval.probes.PROBES`.
        metric, signature: of the metric.
        settings: all that the numbers depend on besides the images.
        result: the numbers; ``findings`` among them is a list of :class:`Finding` as dicts, empty if nothing was found.
        pictures: by their captions, ``(3,H,W)`` in [0,1]; not part of the JSON.
    """

    probe: str
    metric: str
    signature: str
    settings: dict[str, Any]
    result: dict[str, Any]
    pictures: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def findings(self) -> list[Finding]:
        """Weaknesses, in the order found."""
        return [Finding(**{**found, "value": float(found["value"])}) for found in self.result["findings"]]

    def to_dict(self) -> dict[str, Any]:
        """The schema, as JSON has it: infinities and NaN as strings."""
        return finite({key: getattr(self, key) for key in KEYS})

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the JSON file, which appears when it is whole."""
        path = Path(path)
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        with atomic(path) as stream:
            stream.write(text.encode())
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ProbeResult":
        """What :meth:`save` wrote, without the pictures; numbers that JSON lacks stay strings that ``float()`` reads.

        Raises:
            ModelError: the file is no probe's result.
        """
        try:
            found = json.loads(read_text(path))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ModelError(f"{path} is not JSON ({error}): give a file that `cpips probe NAME -o FILE` wrote") from error
        if not isinstance(found, dict) or set(found) != set(KEYS) or not _well_formed(found):
            raise ModelError(f"{path} is not the result of a probe: expected the keys {', '.join(KEYS)}, as "
                             "`cpips probe NAME -o FILE` writes them")
        return cls(**found)


def _well_formed(found: dict[str, Any]) -> bool:
    """Whether the parts have the types that :class:`ProbeResult` says, and findings what pages print of them."""
    result = found["result"]
    if not (all(isinstance(found[key], str) for key in ("probe", "metric", "signature"))
            and isinstance(found["settings"], dict) and isinstance(result, dict) and isinstance(result.get("findings"), list)):
        return False
    try:
        findings = [Finding(**{**each, "value": float(each["value"]), "limit": float(each["limit"])})
                    for each in result["findings"]]
    except (TypeError, ValueError, KeyError):
        return False
    return all(each.kind in KINDS and isinstance(each.text, str) for each in findings)
