"""The state of a MuJoCo simulation, and of the fields of its model that an environment changes."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Iterator
from typing import Any

import mujoco
import numpy as np

from envs.errors import UserError
from envs.snapshots.forms import require_form

_INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION.value
_WITHOUT_WARMSTART = _INTEGRATION & ~mujoco.mjtState.mjSTATE_WARMSTART.value
_LARGEST = 1e6  # of positions, velocities, commands and forces of an episode that makes sense
_LARGEST_OF_ALL = mujoco.mjMAXVAL  # MuJoCo takes a simulation with larger numbers for unstable and resets it
# Numbers with a fraction and switches can be set to anything. Of whole numbers in a model most are addresses, which
# MuJoCo follows wherever they lead; these ones are not.
_HARMLESS = ("geom_contype", "geom_conaffinity", "geom_group", "geom_priority", "site_group", "tex_data")
_MATERIALS = ("geom_matid", "site_matid")
_NEVER = ("opt.timestep",)  # tasks divide by it, and settle for so many of it
_KEPT_WHOLE = 1 << 16  # bytes of a model's field; of a longer one, such as a texture, a digest is kept


def save_physics(model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """(S,) float64: all that the next step of a simulation depends on, the solver's warm start too."""
    state = np.empty(mujoco.mj_stateSize(model, _INTEGRATION))
    mujoco.mj_getState(model, data, state, _INTEGRATION)
    return state


def check_physics(model: mujoco.MjModel, state: Any, what: str) -> None:
    """Refuse what cannot be the state of a model's simulation, or only of one that has gone wild.

    :raises UserError: if it is not an array of that size, or holds numbers that are not finite or absurdly large.
    """
    require_form(state, np.empty(mujoco.mj_stateSize(model, _INTEGRATION)), what)
    bounded = np.empty(mujoco.mj_stateSize(model, _WITHOUT_WARMSTART))
    mujoco.mj_extractState(model, np.ascontiguousarray(state), _INTEGRATION, bounded, _WITHOUT_WARMSTART)
    objection = _beyond(state, _LARGEST_OF_ALL) or _beyond(bounded, _LARGEST)
    if objection is not None:
        raise UserError(f"{what} {objection}")


def load_physics(model: mujoco.MjModel, data: mujoco.MjData, state: np.ndarray) -> None:
    """Put a simulation into a state that was checked. Quantities that derive from it are not computed."""
    mujoco.mj_setState(model, data, np.ascontiguousarray(state), _INTEGRATION)


class FreshModel:
    """What a model's fields were when its environment was new: tells which of them changed since, and sets them.

    Fields are named as in MuJoCo; those of its options and statistics as ``opt.gravity`` and ``stat.meaninertia``.

    :param model: of a new environment.
    :param declared: names of the fields that its episodes may change (a task's ``model_changes``); None: any.
    """

    def __init__(self, model: mujoco.MjModel, declared: Collection[str] | None = None) -> None:
        self._declared = declared
        self._prints = {name: _fingerprint(value) for name, value in model_fields(model)}

    def changed(self, model: mujoco.MjModel) -> dict[str, np.ndarray]:
        """Copies of the fields that are no longer what they were."""
        return {name: value.copy() for name, value in model_fields(model) if _fingerprint(value) != self._prints[name]}

    def objection(self, name: str, value: np.ndarray) -> str | None:
        """Why a field with this value is not restored from a file, None where it is."""
        return self._barred(name, value) or _beyond(value, _LARGEST_OF_ALL)

    def check(self, model: mujoco.MjModel, changed: Any, what: str) -> None:
        """Refuse fields that do not exist or are not declared, whose values do not fit, or that are no mere numbers.

        :param model: the environment's, whatever it has become.
        :param changed: as :meth:`changed` gives it.
        :param what: names it in the message.
        :raises UserError: naming the field.
        """
        fields = dict(model_fields(model))
        for name, value in require_form(changed, dict, what).items():
            if type(name) is not str or name not in fields:
                raise UserError(f"{what}: a model has no field {str(name)[:80]!r}")
            objection = self._barred(name, fields[name])
            if objection is None:
                objection = _beyond(require_form(value, fields[name], f"{what}: '{name}'"), _LARGEST_OF_ALL)
            if objection is not None:
                raise UserError(f"{what}: the model's field {name} {objection}")
            if name in _MATERIALS and not ((value >= -1) & (value < model.nmat)).all():
                raise UserError(f"{what}: '{name}' names materials that do not exist")
        for name in self.changed(model).keys() - changed.keys():
            if may_be_set(name, fields[name]) and fields[name].nbytes > _KEPT_WHOLE:
                raise UserError(f"the model's {name} has changed: load the state into a newly made environment")

    def large(self, model: mujoco.MjModel, names: Collection[str]) -> dict[str, np.ndarray]:
        """Copies of those fields of which only a digest is kept: :meth:`restore` needs them to undo a change."""
        fields = model_fields(model)
        return {name: now.copy() for name, now in fields if name in names and now.nbytes > _KEPT_WHOLE}

    def restore(self, model: mujoco.MjModel, changed: dict[str, np.ndarray]) -> None:
        """Give fields that were checked their values, and all others those of the new environment.

        Large ones that are not given stay as they are.
        """
        fields = dict(model_fields(model))
        for name, now in self.changed(model).items():
            if name not in changed and now.nbytes <= _KEPT_WHOLE:
                _set_field(model, name, np.frombuffer(self._prints[name], now.dtype).reshape(now.shape))
        for name, value in changed.items():
            _set_field(model, name, value.reshape(fields[name].shape))

    def _barred(self, name: str, value: np.ndarray) -> str | None:
        if not may_be_set(name, value):
            return "may not be set"
        if self._declared is not None and name not in self._declared:
            return "is not named in the task's model_changes"
        return None


def model_fields(model: mujoco.MjModel) -> Iterator[tuple[str, np.ndarray]]:
    """Names and values of all that is numbers in a model; arrays are views."""
    for owner, names in _field_names().items():
        part = getattr(model, owner) if owner else model
        for name in names:
            yield f"{owner}.{name}" if owner else name, np.asarray(getattr(part, name))


def may_be_set(name: str, value: np.ndarray) -> bool:
    """Whether a field of a model can be set to other numbers without any harm to memory or to the clock."""
    return name not in _NEVER and (value.dtype.kind in "fb" or name in _HARMLESS or name in _MATERIALS)


@functools.cache
def _field_names() -> dict[str, tuple[str, ...]]:
    """Names of fields by the part of a model that has them, "" for the model itself."""
    model = mujoco.MjModel.from_xml_string("<mujoco/>")
    found = {}
    for owner, kinds in (("", np.ndarray), ("opt", (np.ndarray, float, int)), ("stat", (np.ndarray, float))):
        part = getattr(model, owner) if owner else model
        names = [name for name in dir(part) if not name.startswith("_")]
        found[owner] = tuple(name for name in names if isinstance(getattr(part, name), kinds))
    return found


def _set_field(model: mujoco.MjModel, name: str, value: np.ndarray) -> None:
    owner, _, own = name.rpartition(".")
    part = getattr(model, owner) if owner else model
    if isinstance(getattr(part, own), np.ndarray):
        np.copyto(getattr(part, own), value)
    else:
        setattr(part, own, value.item())


def _beyond(value: np.ndarray, most: float) -> str | None:
    """What is wrong with the numbers of an array, None if nothing is."""
    if value.dtype.kind != "f" or value.size == 0:
        return None
    if not np.isfinite(value).all():
        return "holds NaN or Inf"
    return f"holds numbers beyond {most:g}" if np.abs(value).max() > most else None


def _fingerprint(value: np.ndarray) -> bytes:
    """Equal for arrays of one type whose bits are equal: the bits themselves where they are few."""
    return value.tobytes() if value.nbytes <= _KEPT_WHOLE else hashlib.sha256(np.ascontiguousarray(value)).digest()
