"""From plain configuration to objects, checked before anything is built.

A mapping with `_target_` stands for an object of that class, built from the other keys; with
`_partial_: true` for a factory of it. Its class, its keys, the type and range of each value and
the kind of each nested object must fit the annotations of the class that uses it. All faults are
found at once, each a line with the full key, what was expected and what was found.

Only classes are built, and only from `TRUSTED` packages and those that a user names.
"""

import ast
import collections.abc
import dataclasses
import difflib
import functools
import importlib
import inspect
import math
import sys
import types
import typing
from collections.abc import Container, Iterable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, NotRequired, Required, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import get_protocol_members, is_protocol, is_typeddict

from effllm.modules.errors import ConfigError, DataError

TRUSTED = ("effllm", "torch.optim", "lightning.pytorch.callbacks")
_PLAIN = (int, float, str, bool, type(None))
_HINTS = {  # to somebody who gave a plain value where an object is wanted
    int: " (an unquoted 2:4 in YAML is the integer 124)",
    str: "; choose a file by its group: <group>@<this key>=<file>",
}
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


def load_class(target: object, where: str, packages: Iterable[str] = ()) -> type:
    """The class behind a `_target_`.

    Args:
        target: dotted path.
        where: full key of the `_target_`'s mapping, for messages.
        packages: import roots that are allowed besides `TRUSTED`.

    Raises:
        ConfigError: if it does not exist, is no class, or lies outside the allowed packages.
    """
    allowed = (*TRUSTED, *packages)
    module, _, attribute = str(target).rpartition(".")
    if not any(module == root or module.startswith(f"{root}.") for root in allowed):
        raise ConfigError(
            f"{where}: _target_ {target} is outside of {', '.join(allowed)}; classes of your own "
            "package are allowed with packages=[name]"
        )
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{where}: _target_ {target} does not exist ({error})") from error
    if not isinstance(cls, type):
        raise ConfigError(f"{where}: _target_ {target} is no class")
    return cls


def faults(
    where: str,
    cls: type,
    config: Mapping[str, Any],
    *,
    packages: Iterable[str] = (),
    nested: Iterable[str] | None = None,
) -> Iterator[str]:
    """Everything that keeps `config` from being an object of `cls`, a line each.

    Args:
        where: full key of `config`.
        cls: a dataclass, a typed dictionary, or any class with annotated parameters.
        config: its parameters, nested objects as mappings with `_target_`.
        packages: import roots that are allowed besides `TRUSTED`.
        nested: parameters whose objects are looked into, all if None; looking into an object
            imports its class, and possibly torch with it.
    """
    looked_into = None if nested is None else frozenset(nested)
    if is_typeddict(cls):
        yield from _Checker(tuple(packages), nested is None).value(where, cls, config)
    else:
        yield from _Checker(tuple(packages)).parameters(where, cls, config, nested=looked_into)


def build(where: str, kind: Any, config: Mapping[str, Any], *, packages: Iterable[str] = ()) -> Any:
    """The object that a mapping with `_target_` stands for.

    Args:
        where: full key, for messages.
        kind: annotation that the object must fit: a class, a protocol, a union, `Any`.
        config: `_target_`, parameters, possibly `_partial_`.
        packages: import roots that are allowed besides `TRUSTED`.

    Raises:
        ConfigError: all faults, one a line.
    """
    found = list(_Checker(tuple(packages)).value(where, kind, config))
    if found:
        raise ConfigError(one_a_line(found))
    return construct(where, config, packages)


def construct(where: str, config: Any, packages: Iterable[str] = ()) -> Any:
    """Build what was checked: objects for mappings with `_target_`, all else as it is.

    Raises:
        ConfigError: if a class refuses its parameters together; names the key.
    """
    if isinstance(config, list):
        return [construct(f"{where}[{i}]", item, packages) for i, item in enumerate(config)]
    if not isinstance(config, Mapping):
        return config
    built = {
        key: construct(f"{where}.{key}", value, packages)
        for key, value in config.items()
        if key not in ("_target_", "_partial_")
    }
    if "_target_" not in config:
        return built
    cls = load_class(config["_target_"], where, packages)
    if config.get("_partial_"):
        return functools.partial(cls, **built)
    try:
        return cls(**built)
    except (ConfigError, DataError) as error:
        raise type(error)(f"{where}: {error}") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {error}") from error


def one_a_line(problems: Iterable[str]) -> str:
    """Faults for a person: the same fault of the same setting in many places is one line."""
    places: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        where, _, fault = problem.partition(": ")
        places.setdefault((where.rpartition(".")[2], fault), []).append(where)
    lines = []
    for (_, fault), (first, *others) in places.items():
        more = f" and {len(others)} other{'s' * (len(others) > 1)}" if others else ""
        lines.append(f"{first}{more}: {fault}")
    return "\n".join(lines)


def suggestion(wanted: str, names: Iterable[str]) -> str:
    """`; did you mean …?`, or what there is to choose from."""
    names = list(names)
    close = difflib.get_close_matches(wanted, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there are {', '.join(names)}" if names else "; there are none"


@dataclasses.dataclass(frozen=True)
class _Checker:
    packages: tuple[str, ...]
    nested: bool = True

    def parameters(
        self,
        where: str,
        cls: type,
        config: Mapping[str, Any],
        *,
        partial: bool = False,
        nested: frozenset[str] | None = None,
    ) -> Iterator[str]:
        """Faults of the parameters of a class; some may be missing if `partial`."""
        required, optional = _parameters(cls)
        known = [*required, *optional]
        kinds = annotations(cls, complete=known if nested is None else nested)
        for key in config:
            if key not in known:
                yield f"{where}.{key}: {cls.__name__} has no setting {key}{suggestion(key, known)}"
        for key in required:
            if key not in config and not partial:
                yield f"{where}.{key}: no value; expected {describe(kinds.get(key, Any))}"
        for key in known:
            if key in config:
                checker = _Checker(self.packages, nested is None or key in nested)
                yield from checker.value(f"{where}.{key}", kinds.get(key, Any), config[key])

    def value(self, where: str, kind: Any, value: Any) -> Iterator[str]:
        """Faults of one value of an annotated kind."""
        origin, arguments = get_origin(kind), get_args(kind)
        if _is_object(value):
            yield from self._object(where, kind, value)
        elif kind is Any:
            yield from self._inside(where, value)
        elif _is_plain(kind):
            yield from _plain_faults(where, kind, value)
        elif origin in (Annotated, Required, NotRequired):
            yield from self.value(where, arguments[0], value)
        elif origin in (Union, types.UnionType):
            if value is not None or type(None) not in arguments:
                yield from self._any_of(where, arguments, value)
        elif is_typeddict(kind):
            yield from self._keys(where, kind, value)
        elif origin in (list, tuple):
            if not isinstance(value, list):
                yield f"{where}: expected a list, found {value!r}"
            else:
                for i, item in enumerate(value):
                    yield from self.value(f"{where}[{i}]", arguments[0], item)
        elif origin is dict:
            if not isinstance(value, Mapping):
                yield f"{where}: expected a mapping, found {value!r}"
            else:
                for key, item in value.items():
                    yield from self.value(f"{where}.{key}", arguments[1], item)
        elif self.nested or not isinstance(kind, _Unread):
            hint = _HINTS.get(type(value), "")
            yield f"{where}: expected {describe(kind)}, found {value!r}{hint}"

    def _object(self, where: str, kind: Any, config: Mapping[str, Any]) -> Iterator[str]:
        if not self.nested:
            yield from self._inside(where, config)
            return
        partial = config.get("_partial_", False)
        if not isinstance(partial, bool):
            yield f"{where}._partial_: expected true or false, found {partial!r}"
            return
        try:
            cls = load_class(config["_target_"], where, self.packages)
        except ConfigError as error:
            yield str(error)
            return
        if not _fits(cls, kind, partial):
            yield f"{where}: expected {describe(kind)}, found {cls.__name__}"
            return
        given = {key: item for key, item in config.items() if key not in ("_target_", "_partial_")}
        yield from self.parameters(where, cls, given, partial=partial)

    def _inside(self, where: str, value: Any) -> Iterator[str]:
        """Faults inside a value that may be anything: those of objects, and odd numbers."""
        if isinstance(value, Mapping):
            for key, item in value.items():
                yield from self.value(f"{where}.{key}", Any, item)
        elif isinstance(value, list):
            for i, item in enumerate(value):
                yield from self.value(f"{where}[{i}]", Any, item)
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{where}: expected a finite number, found {value}"

    def _any_of(self, where: str, kinds: tuple[Any, ...], value: Any) -> Iterator[str]:
        """Nothing if one of the kinds fits, else the faults of the nearest."""
        tried = [list(self.value(where, kind, value)) for kind in kinds if kind is not type(None)]
        # Of as many faults, those deep inside tell more than "another kind was expected".
        yield from min(tried, key=lambda found: (len(found), -sum(map(_depth, found))))

    def _keys(self, where: str, kind: Any, value: Any) -> Iterator[str]:
        if not isinstance(value, Mapping):
            yield f"{where}: expected a mapping, found {value!r}"
            return
        hints = annotations(kind, complete=kind.__annotations__ if self.nested else ())
        for key in value:
            if key not in hints:
                yield f"{where}.{key}: there is no setting {key} here{suggestion(key, hints)}"
        for key, hint in hints.items():
            if key in value:
                yield from self.value(f"{where}.{key}", hint, value[key])
            elif key in kind.__required_keys__:
                yield f"{where}.{key}: no value; expected {describe(hint)}"


def _depth(fault: str) -> int:
    return fault.partition(": ")[0].count(".")


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def _is_plain(kind: Any) -> bool:
    """Whether pydantic alone can judge values of the kind."""
    if kind in _PLAIN or get_origin(kind) is Literal:
        return True
    if get_origin(kind) is Annotated:
        return _is_plain(get_args(kind)[0])
    containers = (Union, types.UnionType, list, dict, tuple, frozenset)
    return get_origin(kind) in containers and all(
        argument is Ellipsis or _is_plain(argument) for argument in get_args(kind)
    )


def _plain_faults(where: str, kind: Any, value: Any) -> Iterator[str]:
    # Configurations have lists where a class may want a tuple or a set.
    bare = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    strict = get_origin(bare) not in (tuple, frozenset)
    try:
        _adapter(kind).validate_python(value, strict=strict)
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            # The path inside the value; unions add names of their branches to it.
            inside = [step for step in fault["loc"] if _leads_into(value, step)]
            path = "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in inside)
            expected = fault["msg"].replace("Input should be", "expected")
            yield f"{where}{path}: {expected[0].lower()}{expected[1:]}, found {fault['input']!r}"


def _leads_into(value: Any, step: int | str) -> bool:
    return isinstance(value, list) if isinstance(step, int) else isinstance(value, Mapping)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind, config=_STRICT)


def _fits(cls: type, kind: Any, partial: bool) -> bool:
    """Whether objects of `cls` (factories of them if `partial`) are of an annotated kind."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any or isinstance(kind, _Unread):
        return True
    if origin in (Annotated, Required, NotRequired):
        return _fits(cls, arguments[0], partial)
    if origin in (Union, types.UnionType):
        return any(_fits(cls, argument, partial) for argument in arguments)
    if origin is collections.abc.Callable:
        return partial and _fits(cls, arguments[1], partial=False)
    if not isinstance(kind, type) or partial:
        return False
    if not is_protocol(kind):
        return issubclass(cls, kind)
    # What is only annotated may be set when an object is made; methods and properties must exist.
    members = [name for name in get_protocol_members(kind) if hasattr(kind, name)]
    fields = getattr(cls, "__dataclass_fields__", {})
    return all(hasattr(cls, name) or name in fields for name in members)


def _parameters(cls: type) -> tuple[list[str], list[str]]:
    """Names of required and of optional parameters."""
    if cls.__init__ is object.__init__:  # type: ignore[misc]
        return [], []
    given = list(inspect.signature(cls).parameters.values())
    named = [one for one in given if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    required = [one.name for one in named if one.default is one.empty]
    return required, [one.name for one in named if one.default is not one.empty]


class _Unread:
    """An annotation that cannot be read without torch."""


def annotations(cls: type, *, complete: Container[str]) -> dict[str, Any]:
    """Annotations of a class's parameters, or of the keys of a typed dictionary.

    Args:
        cls: the class.
        complete: names for which what stands under `if TYPE_CHECKING` is imported too; other
            annotations that need it are marked as unread.
    """
    owners: list[Any] = list(reversed(cls.__mro__))
    if not (dataclasses.is_dataclass(cls) or is_typeddict(cls)):
        owners = [method for method in [vars(cls).get("__init__")] if method is not None]
    found: dict[str, Any] = {}
    for base in owners:
        namespace = dict(vars(sys.modules.get(base.__module__, typing)))
        for name, annotation in inspect.get_annotations(base).items():
            found[name] = _read(annotation, namespace)
            if isinstance(found[name], _Unread) and name in complete:
                found[name] = _read(annotation, namespace | _type_checking_names(base.__module__))
    return found


def _read(annotation: Any, namespace: dict[str, Any]) -> Any:
    text = annotation.__forward_arg__ if isinstance(annotation, typing.ForwardRef) else annotation
    try:
        found = eval(text, namespace) if isinstance(text, str) else text
    except NameError:
        return _Unread()
    return type(None) if found is None else found


@cache
def _type_checking_names(module: str) -> dict[str, Any]:
    """What a module imports for type checkers only."""
    names: dict[str, Any] = {}
    for node in ast.parse(inspect.getsource(sys.modules[module])).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for line in node.body:
                if isinstance(line, ast.ImportFrom) and line.module:
                    source = importlib.import_module(line.module)
                    names |= {
                        alias.asname or alias.name: getattr(source, alias.name)
                        for alias in line.names
                    }
                elif isinstance(line, ast.Import):
                    names |= {
                        (alias.asname or alias.name.partition(".")[0]): importlib.import_module(
                            alias.name if alias.asname else alias.name.partition(".")[0]
                        )
                        for alias in line.names
                    }
    return names


def describe(kind: Any) -> str:
    """An annotation in words, for messages."""
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, _Unread) or kind is Any:
        return "a value"
    if origin in (Annotated, Required, NotRequired):
        return describe(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(describe(argument) for argument in arguments)
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin is collections.abc.Callable:
        return f"a factory (_partial_: true) of {describe(arguments[1])}"
    if kind is type(None):
        return "null"
    return getattr(kind, "__name__", str(kind))
