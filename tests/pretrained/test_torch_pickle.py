"""Files in the format of torch.save before PyTorch 1.6 hold the same tensors as archives."""

from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
from helpers.pretrained import Storage, pickled, tensor, write_bin, write_older_bin

from ddpm_jax.pretrained.torch_pickle import read_bin

KINDS = {
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "DoubleStorage": np.float64,
    "BFloat16Storage": ml_dtypes.bfloat16,
}


def state(view=()):
    """A pickle of tensors of several types, two of them in one storage, and the storages."""
    storages = [
        Storage(str(9 - i), (np.arange(24) / 7 + i).astype(dtype), kind, view=view)
        for i, (kind, dtype) in enumerate(KINDS.items())
    ]
    steps = Storage("5", np.array([3, 4]), "LongStorage", view=view)
    tensors = OrderedDict({each.kind: tensor(each, (4, 3), (1, 4), 2) for each in storages})
    tensors["shared"] = tensor(storages[0], (2,), (1,), 22)
    tensors["norm.num_batches_tracked"] = tensor(steps, (2,), (1,))
    tensors._metadata = OrderedDict({"": {"version": 1}})
    return pickled(tensors), [*storages, steps]


def test_the_older_format_holds_the_same_tensors_as_an_archive(tmp_path):
    write_bin(tmp_path / "archive", *state())
    write_older_bin(tmp_path / "older", *state(view=(None,)))
    archive, older = (
        read_bin(tmp_path / name, ["num_batches_tracked"]) for name in ("archive", "older")
    )
    assert older.keys() == archive.keys() == {*KINDS, "shared"}
    for name, each in older.items():
        assert each.shape == archive[name].shape
        np.testing.assert_array_equal(each.read(), archive[name].read(), name)


def test_integers_are_refused_unless_they_are_named_buffers(tmp_path):
    write_older_bin(tmp_path / "older", *state(view=(None,)))
    with pytest.raises(ValueError, match=r"holds integers, 'norm\.num_batches_tracked'"):
        read_bin(tmp_path / "older", ["running_mean"])


def test_a_single_integer_is_read_as_a_number(tmp_path):
    alpha = Storage("0", np.array([8]), "LongStorage")
    write_bin(tmp_path / "lora", pickled({"to_q.alpha": tensor(alpha, (), ())}), [alpha])
    assert read_bin(tmp_path / "lora")["to_q.alpha"].read() == 8


def test_a_file_cut_after_it_was_opened_is_damaged(tmp_path):
    path = tmp_path / "older"
    write_older_bin(path, *state(view=(None,)))
    tensors = read_bin(path, ["num_batches_tracked"])
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(ValueError, match="is damaged at 6"):
        tensors["BFloat16Storage"].read()
