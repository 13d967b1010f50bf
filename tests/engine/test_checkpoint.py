"""Models and resume states on disk: what comes back, and what is said when nothing can."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from fspmu.engine.checkpoint import build_model, describe, load, load_state, load_tensors, save_model, save_state, save_tensors
from fspmu.engine.run import Run
from fspmu.engine.training import sgd
from fspmu.errors import InputError
from fspmu.models import MODELS
from fspmu.models.classifier import Description
from fspmu.preprocessing import Preprocessing
from fspmu.pretraining.trained import SampleHistory

NAMES = ("cat", "dog", "owl")


def make_model(name="smallcnn", seed=0):
    description = Description(name, {"width": 4, "channels": 3}, NAMES, Preprocessing((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), "crop", 2), "ce")
    return build_model(description, torch.Generator().manual_seed(seed)).to(memory_format=torch.channels_last)


def make_optimizer(model, kind):
    return torch.optim.Adam(model.parameters(), 1e-2, weight_decay=0.1) if kind == "adam" else sgd(model, 0.05)


def images(seed=0):
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).to(memory_format=torch.channels_last)


def steps(model, optimizer, count, first=0):
    for step in range(first, first + count):
        optimizer.zero_grad()
        F.cross_entropy(model(images(step)).logits, torch.arange(6) % 3).backward()
        optimizer.step()


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_resumed_optimiser_goes_on_as_if_nothing_had_happened(tmp_path, kind):
    model = make_model()
    optimizer = make_optimizer(model, kind)
    optimizer.param_groups[0]["lr"] = 0.02
    steps(model, optimizer, 3)
    save_state(tmp_path / "state.safetensors", {"model": model, "optimizer": optimizer}, {"epoch": 3, "notices": ["one"]})
    steps(model, optimizer, 3, first=3)

    other = make_model(seed=1)
    again = make_optimizer(other, kind)
    assert load_state((tmp_path / "state.safetensors").read_bytes(), {"model": other, "optimizer": again}) == {"epoch": 3, "notices": ["one"]}
    assert again.param_groups[0]["lr"] == 0.02
    for parameter, state in again.state.items():
        for value in state.values():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                assert value.stride() == parameter.stride()
    assert any(parameter.ndim == 4 and not parameter.is_contiguous() for parameter in again.state)  # else the strides above say nothing
    steps(other, again, 3, first=3)
    assert same(model.state_dict(), other.state_dict())


def test_a_sample_history_comes_back(tmp_path):
    def history():
        return SampleHistory(5, Run())

    kept = history()
    for epoch in range(3):
        kept.record(torch.tensor([4, 0, 2]), torch.randn(3, 4, generator=torch.Generator().manual_seed(epoch)), torch.tensor([0, 1, 2]))
        kept.record(torch.tensor([1, 3]), torch.randn(2, 4, generator=torch.Generator().manual_seed(9 + epoch)), torch.tensor([3, 0]))
        kept.end_epoch()
    save_state(tmp_path / "state.safetensors", {"history": kept}, {})
    again = history()
    load_state((tmp_path / "state.safetensors").read_bytes(), {"history": again})
    assert again.margins.shape == (3, 5) and again.margins.dtype == torch.float16
    assert torch.equal(again.margins, kept.margins)
    again.record(torch.arange(5), torch.zeros(5, 4), torch.zeros(5, dtype=torch.int64))
    again.end_epoch()
    assert again.margins.shape == (4, 5) and kept.margins.shape == (3, 5)


def test_an_empty_history_comes_back_empty(tmp_path):
    save_state(tmp_path / "state.safetensors", {"history": SampleHistory(5, Run())}, {})
    again = SampleHistory(5, Run())
    load_state((tmp_path / "state.safetensors").read_bytes(), {"history": again})
    assert again.margins.shape == (0, 5)


def test_the_same_state_has_the_same_bytes(tmp_path):
    for number in range(2):
        model = make_model()
        optimizer = make_optimizer(model, "sgd")
        steps(model, optimizer, 2)
        save_state(tmp_path / f"{number}.safetensors", {"model": model, "optimizer": optimizer}, {"epoch": 2})
    assert (tmp_path / "0.safetensors").read_bytes() == (tmp_path / "1.safetensors").read_bytes()


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    save_tensors(path, {"a": torch.ones(2)})
    before = path.read_bytes()

    def full_disk(tensors, place, metadata):
        place.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("fspmu.engine.checkpoint.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_tensors(path, {"a": torch.zeros(2)})
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["state.safetensors"]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_with_the_same_answers(tmp_path, name):
    model = make_model(name)
    model(images())  # moves the running statistics
    save_model(model, tmp_path)
    again = load(tmp_path)
    assert not again.training
    assert again.description == model.description and again.class_names == NAMES and again.num_classes == 3
    assert same(model.state_dict(), again.state_dict())
    with torch.no_grad():
        left, right = model.eval()(images(5)), again(images(5))
    torch.testing.assert_close(left.logits, right.logits)
    torch.testing.assert_close(left.features, right.features)


def test_a_network_of_our_own_takes_no_module(tmp_path):
    save_model(make_model(), tmp_path)
    with pytest.raises(InputError, match="a network of fspmu's own, smallcnn; leave the module out"):
        load(tmp_path, module=torch.nn.Linear(2, 2))


def test_metadata_of_several_entries_is_written_in_one_order(tmp_path):
    path, metadata = tmp_path / "a.safetensors", {name: f'{name} "é\n\x01' for name in "qwertyuiopasdfgh"}
    contents = set()
    for entries in (metadata, dict(reversed(metadata.items())), metadata, metadata):
        save_tensors(path, {"b": torch.ones(2), "a": torch.zeros(3, 1)}, entries)
        contents.add(path.read_bytes())
    assert len(contents) == 1
    with safe_open(path, "pt") as file:
        assert file.metadata() == metadata
    assert same(load_tensors(path), {"b": torch.ones(2), "a": torch.zeros(3, 1)})


def test_a_path_as_text_will_do(tmp_path):
    save_model(make_model(), tmp_path)
    assert load(str(tmp_path)).class_names == NAMES


def test_weights_come_from_the_generator_alone():
    state = torch.random.get_rng_state()
    first, again, other = make_model(seed=1), make_model(seed=1), make_model(seed=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert same(first.state_dict(), again.state_dict()) and not same(first.state_dict(), other.state_dict())


def test_describe_changes_only_what_it_is_told():
    model = make_model()
    assert describe(model, trained_by="fspmu") is model
    assert model.description.trained_by == "fspmu" and model.description.class_names == NAMES


def test_the_size_of_its_images_is_kept_where_somebody_knows_it(tmp_path):
    save_model(describe(make_model(), size=(24, 20)), tmp_path)
    assert load(tmp_path).description.size == (24, 20)
    older = json.loads((tmp_path / "model.json").read_text())
    del older["size"]
    (tmp_path / "model.json").write_text(json.dumps(older))
    assert load(tmp_path).description.size is None


def test_a_model_without_description_cannot_be_saved(tmp_path):
    model = make_model()
    model.description = None
    with pytest.raises(InputError, match="no description"):
        save_model(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_model_says_what_to_give(tmp_path):
    with pytest.raises(InputError, match=r"holds no model .*give the folder of a finished `fspmu pretrain`"):
        load(tmp_path / "nowhere")


def rewrite(change):
    def spoil(folder):
        content = json.loads((folder / "model.json").read_text())
        change(content)
        (folder / "model.json").write_text(json.dumps(content))

    return spoil


def cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


SPOILT = {
    "weights cut short": (cut_short, "model.safetensors is no safetensors file"),
    "weights absent": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors does not exist"),
    "weights empty": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "model.safetensors is no safetensors file"),
    "weights of another model": (lambda folder: save_tensors(folder / "model.safetensors", make_model("allcnn").state_dict()), "damaged model"),
    "no JSON": (lambda folder: (folder / "model.json").write_text("{"), "model.json is no JSON file"),
    "no object": (lambda folder: (folder / "model.json").write_text("[]"), "model.json holds no JSON object"),
    "newer": (rewrite(lambda content: content.update(schema=999)), "schema 999, newer .*upgrade fspmu"),
    "no schema": (rewrite(lambda content: content.pop("schema")), "was not written by fspmu"),
    "a key missing": (rewrite(lambda content: content.pop("preprocessing")), "damaged model"),
    "an unknown network": (rewrite(lambda content: content.update(name="smalcnn")), "unknown model 'smalcnn'; did you mean 'smallcnn'"),
    "an unknown argument": (rewrite(lambda content: content["arguments"].update(depth=3)), "damaged model"),
    "another width": (rewrite(lambda content: content["arguments"].update(width=5)), "damaged model"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_model_is_named(tmp_path, case):
    spoil, sentence = SPOILT[case]
    save_model(make_model(), tmp_path)
    spoil(tmp_path)
    with pytest.raises(InputError, match=sentence) as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value) or case == "an unknown network"


def test_reading_tensors_never_runs_a_file(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "model.safetensors")  # a pickle under the name of a safetensors file
    with pytest.raises(InputError, match="is no safetensors file"):
        load_tensors(tmp_path / "model.safetensors")
