"""Classes by name: the model's order, the data's order, and maps between them."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fspmu.data.classes import match_classes, merged_classes, natural_order, order_for, read_class_map, relabel, string_order
from fspmu.data.images import Images
from fspmu.errors import InputError

NAMES = st.lists(st.text("abcXYZ019_ é", min_size=1, max_size=5), min_size=1, max_size=8, unique=True)
FEW = settings(max_examples=60)


def images_of(names, labels):
    return Images(
        torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), torch.tensor(labels, dtype=torch.int64), tuple(names), [str(i) for i in range(len(labels))]
    )


@FEW
@given(NAMES, st.randoms(use_true_random=False), st.data())
def test_every_sample_keeps_its_class_by_name(model_names, random, data):
    data_names = random.sample(model_names, random.randint(1, len(model_names)))
    labels = data.draw(st.lists(st.integers(0, len(data_names) - 1), max_size=10))
    images = images_of(data_names, labels)
    found = relabel(images, match_classes(model_names, data_names), model_names)
    assert found.class_names == tuple(model_names) and found.num_classes == len(model_names)
    assert [found.class_names[k] for k in found.given_labels.tolist()] == [data_names[k] for k in labels]
    assert found.pixels is images.pixels and found.ids == images.ids


@FEW
@given(NAMES, st.randoms(use_true_random=False))
def test_a_map_goes_before_the_names(model_names, random):
    data_names = [f"data {name}" for name in model_names]
    partners = [random.choice(model_names) for _ in data_names]
    places = match_classes(model_names, data_names, dict(zip(data_names, partners, strict=True)))
    assert [model_names[place] for place in places] == partners
    assert len(merged_classes(places, data_names, model_names)) == sum(partners.count(name) > 1 for name in set(partners))


def test_only_those_that_differ_need_the_map():
    assert match_classes(["cat", "dog"], ["Hund", "cat"], {"Hund": "dog"}) == (1, 0)
    assert match_classes(["cat", "dog"], ["cat", "dog"], {"cat": "dog", "dog": "cat"}) == (1, 0)
    assert merged_classes((0, 1, 0), ["tom", "dog", "puss"], ["cat", "dog"]) == ("the classes tom, puss of the data are one class of the model: cat",)


@pytest.mark.parametrize(
    ("data_names", "class_map", "words"),
    [
        (["cat", "cow"], None, "does not know the classes cow; the data's classes: cat, cow; the model's: cat, polar bear; give a --class-map"),
        (["Cat", "Polar_Bear"], None, r"classes Cat, Polar_Bear \(did you mean 'cat' for 'Cat', 'polar bear' for 'Polar_Bear'\?\)"),
        (["cat", "cow"], {"cow": "bull"}, "the class map names bull, which the model does not have"),
        (["cat", "cow"], {"calf": "cat"}, "the class map names calf, which the data does not have"),
        (["cat", "cow"], {"cow": "Cat"}, r"names Cat, which the model does not have \(did you mean 'cat' for 'Cat'\?\)"),
    ],
)
def test_classes_without_a_partner_are_named(data_names, class_map, words):
    with pytest.raises(InputError, match=words):
        match_classes(["cat", "polar bear"], data_names, class_map)


def test_long_lists_are_shortened_and_repeated_names_refused():
    with pytest.raises(InputError, match="class 0, class 1, .* and 80 more"):
        match_classes([f"class {k}" for k in range(100)], ["other"])
    with pytest.raises(InputError, match="several classes named crane"):
        match_classes(["crane", "crane"], ["crane"])
    with pytest.raises(InputError, match="2 classes, and places were given for 1"):
        relabel(images_of("ab", [0, 1]), (0,), "ab")


TEXT = st.text("abc,\"' \né{}:", min_size=1, max_size=6).filter(lambda text: text.strip() == text and "\n" not in text)


@FEW
@given(content=st.dictionaries(TEXT, TEXT, min_size=1, max_size=5))
def test_maps_are_read_as_they_were_written(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("maps")
    (folder / "map.json").write_text(json.dumps(content), encoding="utf-8")
    rows = [("data", "model"), *content.items()]
    (folder / "map.csv").write_text("\n".join(",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows), encoding="utf-8-sig")
    assert read_class_map(folder / "map.json") == read_class_map(folder / "map.csv") == content


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("map.json", '["a", "b"]', "holds no JSON object from the data's class names"),
        ("map.json", '{"a": 1}', "holds no JSON object"),
        ("map.json", '{"a": {"b": "c"}}', "holds no JSON object"),
        ("map.json", '{"a": "b"', "is no class map in UTF-8"),
        ("map.json", '{"a": "b", "a": "c"}', "maps a more than once"),
        ("map.csv", "data,model\na,b\na,c", "maps a more than once"),
        ("map.csv", "data,model\na,b,c", "needs two columns, .* has 'a,b,c'"),
        ("map.csv", "data,model\na,", "needs two columns"),
        ("map.csv", "", "is empty"),
        ("map.csv", b"data,model\na,\xff", "is no class map in UTF-8"),
        ("map.txt", "a b", "is no class map: give a .json"),
    ],
)
def test_files_that_are_no_map(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=words):
        read_class_map(tmp_path / name)


def test_a_map_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="does not exist; give a file with --class-map"):
        read_class_map(tmp_path / "map.json")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        read_class_map(tmp_path / "folder.csv")


@FEW
@given(NAMES)
def test_the_natural_order_is_that_of_timm(names):
    natural_key = pytest.importorskip("timm.utils.misc").natural_key
    assert [natural_key(name) for name in natural_order(names)] == sorted(natural_key(name) for name in names)
    assert sorted(natural_order(names)) == sorted(names) and natural_order(names[::-1]) == natural_order(names)


@FEW
@given(NAMES, st.sampled_from(["timm", "hf", "code", "module"]))
def test_the_order_of_a_model_that_names_nothing(names, kind):
    order, note = order_for(kind, names)
    assert order == (natural_order(names) if kind == "timm" else string_order(names))
    assert bool(note) == (natural_order(names) != string_order(names)) and ("--class-order" in note) == bool(note)


def test_the_orders_that_differ_are_told():
    names = ["class10", "class2", "Class1"]
    assert natural_order(names) == ("Class1", "class2", "class10") and string_order(names) == ("Class1", "class10", "class2")
    order, note = order_for("timm", names)
    assert order == natural_order(names)
    assert "natural order, where class 1 is class2, while in string order it is class10: --class-order string if it was trained so" in note
    assert "--class-order natural" in order_for("hf", names)[1] and order_for("hf", ["a", "b"]) == (("a", "b"), "")
