"""The ecosystems' own validators, as functions that raise or return what they read."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import jsonschema
import pycef
import stix2
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema
from syslog_rfc5424_parser import SyslogMessage

from vedette_core.export.ocsf import OCSF_VERSION


@lru_cache(maxsize=1)
def ocsf_validator() -> jsonschema.Draft202012Validator:
    """The Detection Finding of the published schema, with every object that it refers to; unknown fields are faults."""
    schema = OcsfJsonSchemaEmbedded(get_ocsf_schema(version=OCSF_VERSION))
    name = schema.lookup_class_name_from_uid(class_uid=2004)
    return jsonschema.Draft202012Validator(schema.get_class_schema(class_name=name, profiles=[]))


def check_ocsf(document: dict[str, Any]) -> None:
    ocsf_validator().validate(document)


def check_stix(document: dict[str, Any]) -> Any:
    """Strict: a property that STIX 2.1 does not know is a fault."""
    return stix2.parse(document, allow_custom=False, version="2.1")


def read_cef(line: str) -> dict[str, str]:
    """What a CEF parser sees; labelled fields stand under their labels. Escapes are taken off here: it leaves them."""
    found = pycef.parse(line)
    assert found is not None, line
    return {key: unescape_cef(value) for key, value in found.items()}


def unescape_cef(value: str) -> str:
    return re.sub(r"\\(.)", lambda m: {"n": "\n", "r": "\r"}.get(m[1], m[1]), value)


def read_syslog(message: bytes) -> Any:
    return SyslogMessage.parse(message.decode())
