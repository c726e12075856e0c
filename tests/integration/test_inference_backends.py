"""Every back end that works here reconstructs alike; nothing is parsed before its digest is right."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from vedette_aggregator.artifacts import build_artifacts
from vedette_aggregator.tflite_writer import embed_metadata, pack_model, read_model, write_float32
from vedette_core.learning.layers import Dense
from vedette_core.learning.layout import WeightLayout
from vedette_core.learning.model_metadata import ModelMetadata
from vedette_core.learning.network import Network, build_network
from vedette_core.learning.spec import DENSE_AUTOENCODER, NetworkSpec, dense_spec, flow_spec
from vedette_device import inference
from vedette_device.baseline import Baseline
from vedette_device.calibrated_model import CalibratedModel
from vedette_device.features import Window
from vedette_device.inference import BATCH_ROWS, LITERT, NUMPY, TFLITE_RUNTIME, open_model
from vedette_schemas.alert import AlertModel
from vedette_schemas.errors import ConfigError, PeerError
from vedette_schemas.features import NETWORK_FLOWS, FeatureSchema, sensor_schema
from vedette_schemas.model import MODEL_BYTES_MAX, Variant

SENSOR = sensor_schema(("level", "flow"), history=8)
VARIANTS = (Variant.WEIGHTS, Variant.FLOAT32, Variant.INT8)


def built(spec: NetworkSpec, schema: FeatureSchema) -> tuple[Network, np.ndarray, np.ndarray, dict[Variant, Any]]:
    network = build_network(spec)
    rng = np.random.default_rng(0)
    weights = network.initial_weights(rng)
    x = rng.standard_normal((150, *spec.input_shape)).astype(np.float32)
    ranges = network.activation_ranges(x, weights)
    variants = build_artifacts(network, weights, task="task", schema=schema, ranges=ranges, variants=VARIANTS)
    return network, weights, x, variants


FLOW = built(flow_spec(), NETWORK_FLOWS)
DENSE = built(dense_spec(*SENSOR.input_shape), SENSOR)


@pytest.fixture(params=[FLOW, DENSE], ids=["flow", "sensor"])
def model(request: pytest.FixtureRequest) -> tuple[Network, np.ndarray, np.ndarray, dict[Variant, Any]]:
    return request.param  # type: ignore[no-any-return]


@pytest.mark.parametrize("variant", VARIANTS)
def test_single_rows_and_batches_agree_with_numpy(model: Any, variant: Variant) -> None:
    network, weights, x, variants = model
    artifact = variants[variant]
    loaded = open_model(artifact.data, sha256=artifact.sha256)
    backend = loaded.backend
    expected = network.reconstruct(x, weights)
    many = backend.reconstruct(x)
    assert len(x) % BATCH_ROWS, "the last batch must be a part of one"
    assert many.dtype == np.float32
    # INT8: an untrained network has steps of 0.05 in every layer; a wrong one is off by the rows' spread, which is 1.
    tolerance = 0.1 if variant is Variant.INT8 else 1e-5
    assert np.sqrt(np.mean((many - expected) ** 2)) <= tolerance
    kept = x.copy()
    for row, of_batch in zip(x[:40], many, strict=False):
        alone = backend.reconstruct(row[None])
        assert alone.shape == (1, *network.target_shape)
        assert np.abs(alone[0] - of_batch).max() <= (0.05 if variant is Variant.INT8 else 1e-5)
    assert np.array_equal(x, kept)
    assert np.array_equal(backend.reconstruct(x), many), "single rows must not disturb batches"
    assert backend.reconstruct(x[:0]).shape == (0, *network.target_shape)
    assert np.abs(backend.reconstruct(x[:7]) - many[:7]).max() <= (0.1 if variant is Variant.INT8 else 1e-5)
    assert np.abs(backend.reconstruct(x[:1]) - many[:1]).max() <= (0.05 if variant is Variant.INT8 else 1e-5)
    with pytest.raises(ValueError, match="expected \\(n"):
        backend.reconstruct(np.zeros((2, 3), np.float32))


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_was_loaded_says_what_it_is(model: Any, variant: Variant) -> None:
    network, _, _, variants = model
    loaded = open_model(variants[variant].data, sha256=variants[variant].sha256)
    assert loaded.variant == variant.value
    assert loaded.schema == (NETWORK_FLOWS if network is FLOW[0] else SENSOR)
    assert loaded.backend.network.spec == network.spec
    assert loaded.backend.name == (NUMPY if variant is Variant.WEIGHTS else inference.available_interpreters()[0])
    assert loaded.task == ("" if variant is Variant.WEIGHTS else "task")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_window_scores_the_same_alone_and_in_a_batch(model: Any, variant: Variant) -> None:
    _, _, x, variants = model
    loaded = open_model(variants[variant].data, sha256=variants[variant].sha256)
    inputs = x.reshape(len(x), loaded.schema.history, -1)
    past = [Window("one", float(i), i + 1.0, np.abs(rows[-1])) for i, rows in enumerate(inputs)]
    identity = AlertModel(task="task", version=1, digest="a" * 16)
    baseline = Baseline.fit(loaded.schema, past)
    judging = CalibratedModel.measure(loaded.backend, identity, baseline, inputs, ["one"] * len(x), 2.0)
    together = judging.judge(inputs, ["one"] * len(x))
    alone = [judging.judge(each[None], ["one"]) for each in inputs]
    assert len(x) > inference.SINGLE_ROWS_MAX, "the whole must take the other way"
    assert [j.scores[0] for j in alone] == pytest.approx(together.scores, rel=0.02)
    assert len({j.p_values[0] for j in alone}) > len(x) / 2
    changed = inputs[:1].copy()
    changed[0, -1, 1] += 50.0
    judgement = judging.judge(changed, ["one"])
    assert judgement.scores[0] > 3 * together.scores[0]
    assert judgement.p_values[0] < 1 / len(x)
    assert judgement.squared_ratio[0, -1].argmax() == 1


def test_the_fast_way_is_taken_here_and_the_public_one_gives_the_same(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, x, variants = model
    artifact = variants[Variant.INT8]
    fast = open_model(artifact.data, sha256=artifact.sha256).backend
    monkeypatch.setattr(inference.InterpreterBackend, "_view_slot", lambda *_: None)
    public = open_model(artifact.data, sha256=artifact.sha256).backend
    assert (fast.uses_views, public.uses_views) == (True, False)  # type: ignore[attr-defined]
    for row in x[:20]:
        for backend in (fast, public):
            backend.slot.source[...] = row
            backend.slot.run()
        assert np.array_equal(fast.slot.result, public.slot.result)


def test_a_runtime_whose_views_are_not_its_memory_takes_the_public_way() -> None:
    class Copying(inference._interpreter_class(LITERT)):  # type: ignore[misc]
        def tensor(self, index: int) -> Any:
            return lambda: self.get_tensor(index)

    data, network = FLOW[3][Variant.FLOAT32].data, FLOW[0]
    backend = inference.InterpreterBackend("copying", Copying, data, network)
    assert not backend.uses_views
    assert backend.reconstruct(FLOW[2][:1]) == pytest.approx(network.reconstruct(FLOW[2][:1], FLOW[1]), abs=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_byte_is_parsed_before_the_digest_is_right(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = DENSE[3][variant]

    def never(*_: object, **__: object) -> None:
        raise AssertionError("parsed before it was verified")

    for name in ("read_weights", "read_model_metadata", "_interpreter_class"):
        monkeypatch.setattr(inference, name, never)
    flipped = bytearray(artifact.data)
    flipped[len(flipped) // 2] ^= 1
    with pytest.raises(PeerError, match=f"expected {artifact.sha256}") as caught:
        open_model(bytes(flipped), sha256=artifact.sha256)
    assert caught.value.reason == "digest"
    with pytest.raises(PeerError, match="expected at most"):
        open_model(b"\0" * (MODEL_BYTES_MAX + 1), sha256=artifact.sha256)


def signed(data: bytes) -> dict[str, Any]:
    return {"data": data, "sha256": hashlib.sha256(data).hexdigest()}


def test_a_model_that_is_not_what_its_metadata_say_is_refused() -> None:
    network, weights = DENSE[0], DENSE[1]
    model = read_model(write_float32(network, weights))
    lying = FeatureSchema(use_case="sensor", version=1, columns=tuple("abc"), window_s=1.0, history=1)
    embed_metadata(model, ModelMetadata("t", "float32", dense_spec(3), lying).to_bytes())
    with pytest.raises(PeerError, match="found input float32 of shape"):
        open_model(**signed(pack_model(model)))


def test_signed_garbage_with_our_metadata_is_refused_by_the_runtime() -> None:
    network, weights = DENSE[0], DENSE[1]
    model = read_model(write_float32(network, weights))
    model.subgraphs[0].operators[0].inputs[1] = 0
    embed_metadata(model, ModelMetadata("t", "float32", network.spec, SENSOR).to_bytes())
    with pytest.raises(PeerError, match="cannot load it"):
        open_model(**signed(pack_model(model)))


def test_without_an_interpreter_the_weights_still_run_and_the_rest_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inference, "available_interpreters", lambda: ())
    variants = DENSE[3]
    loaded = open_model(variants[Variant.WEIGHTS].data, sha256=variants[Variant.WEIGHTS].sha256)
    assert loaded.backend.name == NUMPY
    with pytest.raises(ConfigError, match="take the release's weights file"):
        open_model(variants[Variant.INT8].data, sha256=variants[Variant.INT8].sha256)


def test_a_preferred_back_end_is_used_or_refused() -> None:
    artifact = DENSE[3][Variant.INT8]
    working = inference.available_interpreters()
    assert open_model(artifact.data, sha256=artifact.sha256, prefer=working[0]).backend.name == working[0]
    for name in {LITERT, TFLITE_RUNTIME} - set(working):
        with pytest.raises(ConfigError, match=f"back end {name}: it does not work here"):
            open_model(artifact.data, sha256=artifact.sha256, prefer=name)
    weights = DENSE[3][Variant.WEIGHTS]
    with pytest.raises(ConfigError, match="weights file"):
        open_model(weights.data, sha256=weights.sha256, prefer=LITERT)


def test_an_interpreter_that_imports_but_does_not_build_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    """What tflite-runtime does under numpy 2."""

    def importable(_: str) -> Any:
        def build(**__: object) -> None:
            raise SystemError("_ARRAY_API not found")

        return build

    monkeypatch.setattr(inference, "_interpreter_class", importable)
    inference.available_interpreters.cache_clear()
    try:
        assert inference.available_interpreters() == ()
    finally:
        inference.available_interpreters.cache_clear()


def test_the_probe_model_is_what_our_writer_writes() -> None:
    layer = Dense("output", (1,), 1)
    network = Network(NetworkSpec(DENSE_AUTOENCODER, (1,), (1,)), (layer,), WeightLayout(layer.weight_shapes))
    assert write_float32(network, np.array([2.0, 0.0], np.float32)) == inference._PROBE_MODEL


def test_no_released_interpreter_keeps_a_second_thread_busy() -> None:
    """One thread by construction: the process has as many threads after a thousand windows as before."""
    code = (
        "import hashlib, json, os, sys\n"
        "import numpy as np\n"
        "from vedette_device.inference import open_model\n"
        "data = sys.stdin.buffer.read()\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "backend = open_model(data, sha256=hashlib.sha256(data).hexdigest()).backend\n"
        "for _ in range(1000): backend.slot.run()\n"
        "backend.reconstruct(np.zeros((500, *backend.network.input_shape), np.float32))\n"
        "print(json.dumps([before, len(os.listdir('/proc/self/task'))]))"
    )
    data = FLOW[3][Variant.INT8].data
    out = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True).stdout
    before, after = json.loads(out)
    assert after == before
