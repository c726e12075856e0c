from __future__ import annotations

from typing import Any

import pytest

from vedette_core.learning.network import build_network
from vedette_core.learning.spec import DENSE_AUTOENCODER, NetworkSpec, dense_spec, flow_spec
from vedette_schemas.errors import PeerError


def changed(**values: Any) -> dict[str, Any]:
    return {**flow_spec().to_dict(), **values}


@pytest.mark.parametrize(
    ("plain", "found"),
    [
        (changed(kind="transformer"), "kind = 'transformer'"),
        (changed(activation="tanh"), "activation = 'tanh'"),
        (changed(input_shape=[16]), "input_shape"),
        (changed(input_shape=[16, 0]), "input_shape"),
        (changed(input_shape=[16, 24.0]), "input_shape"),
        (changed(input_shape=[16, True]), "input_shape"),
        (changed(input_shape=[16, 10**9]), "input_shape"),
        (changed(hidden=[]), "hidden"),
        (changed(hidden=[4] * 50), "hidden"),
        (changed(kernel=4), "kernel = 4"),
        (changed(kernel=17), "kernel = 17"),
        (changed(target_windows=0), "target_windows = 0"),
        (changed(target_windows=17), "target_windows = 17"),
        (changed(bottleneck=0), "bottleneck"),
        (changed(decoder=-1), "bottleneck"),
        (changed(bottleneck="8"), "bottleneck"),
        (changed(surplus=1), "fields"),
        ({"kind": DENSE_AUTOENCODER}, "fields"),
        ([1, 2], "fields"),
        ({**dense_spec(8).to_dict(), "kernel": 3}, "bottleneck, decoder, kernel"),
        ({**dense_spec(8).to_dict(), "target_windows": 1}, "target_windows"),
    ],
)
def test_what_is_no_spec_is_refused_with_what_was_found(plain: Any, found: str) -> None:
    with pytest.raises(PeerError, match="network spec: found " + found):
        NetworkSpec.from_dict(plain)


def test_a_spec_that_would_fill_the_memory_is_refused_before_anything_is_allocated() -> None:
    spec = NetworkSpec(DENSE_AUTOENCODER, (1024,), (1024, 1024))
    with pytest.raises(PeerError, match="weights, expected at most"):
        build_network(spec)


def test_the_digest_names_the_shape() -> None:
    assert flow_spec().digest == NetworkSpec.from_dict(flow_spec().to_dict()).digest
    assert flow_spec().digest != flow_spec(16, 25).digest
    assert len(flow_spec().digest) == 64
