"""Roots with other anchors of the beacon: from ceremonies, and from whoever has some keys."""

from __future__ import annotations

import json
from collections.abc import Callable

from release_site import Site
from tuf.api.metadata import Metadata, Root

from vedette_aggregator.registry_files import load_keys
from vedette_device.trust import TrustClient
from vedette_schemas.trust import BeaconAnchor


def anchor_of(device: TrustClient) -> BeaconAnchor:
    assert device.beacon_fault is None
    assert device.beacon_anchor is not None
    return device.beacon_anchor


def renew(site: Site, *rotate: str, deliver: bool = True, **options: int) -> None:
    publication = site.registry.renew(site.repository / "root-keys", site.now, rotate, **options)
    if deliver:
        site.deliver(publication)


def change_root(site: Site, change: Callable[[Root], None], keys: str) -> bytes:
    """Show the newest root as the next version, changed, and signed with every key of a folder of the repository."""
    newest = site.registry.retained().files
    name = [n for n in newest if n.endswith(".root.json")][-1]
    document = Metadata[Root].from_bytes(site.retained[site.file(name)])
    document.signed.version += 1
    change(document.signed)
    document.signatures.clear()
    for signer in load_keys(site.repository / keys, list(document.signed.keys)):
        document.sign(signer, append=True)
    assert document.signatures
    data = document.to_bytes()
    show_root(site, document.signed.version, data)
    return data


def show_root(site: Site, version: int, data: bytes) -> None:
    """Put bytes where the root of a version belongs, and list them in the index."""
    name = f"{version}.root.json"
    site.retained[site.file(name)] = data
    listed = json.loads(site.retained[site.file("index.json")])["files"]
    site.retained[site.file("index.json")] = json.dumps({"files": sorted({*listed, name})}).encode()


def hide_root(site: Site, version: int) -> None:
    name = f"{version}.root.json"
    del site.retained[site.file(name)]
    listed = json.loads(site.retained[site.file("index.json")])["files"]
    site.retained[site.file("index.json")] = json.dumps({"files": [n for n in listed if n != name]}).encode()
