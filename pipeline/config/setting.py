"""Settings as their declarations describe them, read from msgspec.inspect at one place.

    settings_of(Struct)     name -> Setting, in the order of the declaration
    describe(kind)          the values that a type accepts, in words
    element_of(kind)        the type of the elements of an array

`pipeline.config.types` declares; messages, the schema and the reference are made of what is read here.
"""

import json
from typing import Any, NamedTuple

from msgspec import NODEFAULT, Struct
from msgspec import inspect as kinds


class Setting(NamedTuple):
    """One setting. `derived`: the default in words, where it depends on other settings; "" where it does not."""

    name: str
    kind: kinds.Type
    default: Any
    description: str
    unit: str
    derived: str
    live: bool

    @property
    def is_required(self) -> bool:
        return self.default is NODEFAULT

    @property
    def expected(self) -> str:
        """The accepted values in words, with their unit."""
        return " ".join(filter(None, (describe(self.kind), self.unit)))


def settings_of(struct: type[Struct]) -> dict[str, Setting]:
    """Every field of a struct whose annotations were made by `types.about`, by name."""
    kind = kinds.type_info(struct)
    assert isinstance(kind, kinds.StructType)
    return {field.name: _setting(field) for field in kind.fields}


def _setting(field: kinds.Field) -> Setting:
    about = field.type
    assert isinstance(about, kinds.Metadata) and about.extra is not None and about.extra_json_schema is not None
    extra = about.extra
    description = about.extra_json_schema["description"]
    default = field.default if field.default_factory is NODEFAULT else field.default_factory()  # a factory for {}
    return Setting(field.name, about, default, description, extra["unit"], extra["derived"], extra["live"])


def bare(kind: kinds.Type) -> kinds.Type:
    """A type without its metadata."""
    return kind.type if isinstance(kind, kinds.Metadata) else kind


def element_of(kind: kinds.Type) -> kinds.Type | None:
    """The type of the elements, of a type that can be an array; None if it cannot."""
    plain = bare(kind)
    alternatives = plain.types if isinstance(plain, kinds.UnionType) else (plain,)
    return next((each.item_type for each in alternatives if isinstance(each, kinds.VarTupleType)), None)


def mapping_of(kind: kinds.Type) -> kinds.DictType | None:
    """Of a type that can be an object with keys of its own; None if it cannot."""
    plain = bare(kind)
    alternatives = plain.types if isinstance(plain, kinds.UnionType) else (plain,)
    return next((each for each in map(bare, alternatives) if isinstance(each, kinds.DictType)), None)


def describe(kind: kinds.Type) -> str:
    """The values that a type accepts, in words."""
    if isinstance(kind, kinds.Metadata) and kind.extra and "accepts" in kind.extra:
        return str(kind.extra["accepts"])
    match bare(kind):
        case kinds.BoolType():
            return "true or false"
        case kinds.IntType(ge=least, le=most, multiple_of=step):
            return f"{f'a multiple of {step}' if step else 'an integer'} from {least} to {most}"
        case kinds.FloatType(ge=least, le=most):
            return f"a number from {least} to {most}"
        case kinds.LiteralType(values=values):
            return _either([json.dumps(value) for value in values])
        case kinds.VarTupleType(item_type=item):
            return f"an array; in it, {describe(item)}"
        case kinds.UnionType(types=(one, kinds.VarTupleType(item_type=item), *_)) if one == item:
            return f"{describe(one)}, or an array of such"
        case kinds.UnionType(types=types):
            return ", or ".join(describe(each) for each in types if not isinstance(each, kinds.NoneType))
        case other:
            raise TypeError(f"no words for {other}")


def _either(texts: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))
