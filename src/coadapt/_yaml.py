"""The dialect of YAML that `coadapt.config` reads and writes."""

import re
from typing import ClassVar

import yaml
from yaml.composer import ComposerError

_PREFIX = "tag:yaml.org,2002:"
# YAML 1.1, which PyYAML follows, reads `1e-3` as text and `no` as a truth value; both surprise.
_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+|0o[0-7]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    ("merge", r"<<", ["<"]),
)


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for tag, pattern, firsts in _SCALARS:
        for first in firsts:
            table.setdefault(first, []).append((_PREFIX + tag, re.compile(rf"(?:{pattern})\Z")))
    return table


class YamlLoader(yaml.SafeLoader):
    """Reads scalars as YAML 1.2 does; keys are text, and none stands twice in a mapping."""

    yaml_implicit_resolvers: ClassVar = _resolvers()

    def compose_mapping_node(self, anchor: object) -> yaml.MappingNode:
        """Check the keys; here each mapping passes once, merged ones do too."""
        node = super().compose_mapping_node(anchor)  # pyright: ignore[reportArgumentType]
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ComposerError(None, None, "a key must be a plain word", key.start_mark)
            if key.value in seen:
                twice = f"the key '{key.value}' stands in line {seen[key.value]} too; remove one"
                raise ComposerError(None, None, twice, key.start_mark)
            seen[key.value] = key.start_mark.line + 1
            if key.tag != _PREFIX + "merge":
                # A task may be named `1` or `on`: a key is the text that was written.
                key.tag = _PREFIX + "str"
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Read decimal, hexadecimal and octal numbers."""
        return int(self.construct_scalar(node), 0)


YamlLoader.add_constructor(_PREFIX + "int", YamlLoader.construct_yaml_int)


class YamlDumper(yaml.SafeDumper):
    """Quotes what either YAML 1.1 or 1.2 would not read as text."""

    yaml_implicit_resolvers: ClassVar = {
        first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *rows]
        for first, rows in (
            dict.fromkeys(yaml.SafeDumper.yaml_implicit_resolvers, ()) | _resolvers()
        ).items()
    }

    def ignore_aliases(self, data: object) -> bool:
        """Write equal lists out, each in its place."""
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Write text so that every character comes back."""
        # PyYAML folds these line breaks away unless they are escaped.
        style = '"' if any(c in text for c in "\r\x85\u2028\u2029") else None
        return self.represent_scalar(_PREFIX + "str", text, style=style)


YamlDumper.add_representer(str, YamlDumper.represent_text)
