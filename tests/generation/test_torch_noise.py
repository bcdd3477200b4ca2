"""The generators of PyTorch, compared with values of torch.randn and of the published Philox."""

import numpy as np
from helpers.refusals import assert_refused
from scipy import stats

from ddpm_jax.generation.torch_noise import philox, torch_normal

# Printed by torch 2.13 on a CPU: torch.randn(19), then torch.randn(16), of one generator.
RANDN_19 = {
    37: [
        *(-0.09384752, -0.49599066, 0.9621382, -0.5069863, -1.3766444, -2.0966082, -1.0177851),
        *(0.37341422, -1.1373719, -0.86436003, 0.31040725, 0.6669979, -1.8708996, 0.16858663),
        *(0.9331735, 0.20100449, -0.47943467, 0.3503891, -1.4095963),
    ],
    2**32 + 5: [
        *(1.8423299, 0.51888716, -1.7119213, -0.9650602, -0.12966268, -0.60176563, 0.14499857),
        *(-0.14982717, 2.614577, -0.43402296, 0.35233545, -2.0304952, 1.4829323, 0.49403808),
        *(0.24921878, 1.7470315, 0.74477696, 0.031656895, -1.1724143),
    ],
}
NEXT_0_7_8_15 = {
    37: [2.5882704, -0.8839684, -0.5962936, 0.8080455],
    2**32 + 5: [-0.1791656, 0.26526582, -1.6391187, -0.17770459],
}
# Published with the generator of AUTOMATIC1111's web UI (rng_philox.py): torch.randn on CUDA of the
# shape (3, 4) with seed 0.
CUDA_SEED_0 = [
    [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
    [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
    [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
]


def test_cpu_noise_equals_torch_randn_also_in_later_draws():
    for seed, expected in RANDN_19.items():
        first, second = torch_normal("torch-cpu", seed, [(19,), (1, 4, 2, 2)])
        np.testing.assert_allclose(first, expected, atol=5e-7)
        assert second.shape == (1, 4, 2, 2)
        np.testing.assert_allclose(second.ravel()[[0, 7, 8, 15]], NEXT_0_7_8_15[seed], atol=5e-7)


def test_cpu_noise_is_drawn_in_blocks_of_16_and_an_incomplete_block_again():
    (long,) = torch_normal("torch-cpu", 1145, [(64,)])
    (short,) = torch_normal("torch-cpu", 1145, [(48,)])
    (odd,) = torch_normal("torch-cpu", 1145, [(35,)])
    np.testing.assert_array_equal(short, long[:48])
    np.testing.assert_array_equal(odd[:19], long[:19])
    # 35 values use 35 words, and the last 16 of them 16 more: the next draw starts at word 51.
    _, after = torch_normal("torch-cpu", 1145, [(35,), (16,)])
    (words,) = torch_normal("torch-cpu", 1145, [(51 + 16,)])
    assert not np.any(odd[19:] == words[19:35])
    uniform = np.random.RandomState(1145).randint(0, 2**32, 67, np.uint32)[51:] & 0xFFFFFF
    length = np.hypot(after[:8], after[8:])
    np.testing.assert_allclose(length**2, -2 * np.log(1 - uniform[:8] / 2.0**24), rtol=1e-5)


def test_cuda_noise_equals_the_published_values():
    (values,) = torch_normal("torch-cuda", 0, [(3, 4)])
    np.testing.assert_allclose(values, CUDA_SEED_0, atol=5e-7)


def test_philox_equals_the_vectors_of_its_authors():
    """From kat_vectors of Random123, philox4x32 with 10 rounds."""
    ones = 0xFFFFFFFF
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    cases = {
        (0, 0, 0, 0, 0): [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8],
        (ones, ones, ones, ones, 2**64 - 1): [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        (*pi, 0x299F31D0A4093822): [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    }
    for (*counter, key), expected in cases.items():
        words = philox(np.array(counter, np.uint64)[:, None], key)
        assert words[:, 0].tolist() == expected


def test_noise_is_normal_and_differs_by_seed_and_draw():
    for kind in ("torch-cpu", "torch-cuda"):
        a, b = torch_normal(kind, 7, [(4, 1000), (4, 1000)])
        (c,) = torch_normal(kind, 8, [(4, 1000)])
        for one, other in ((a, b), (a, c)):
            assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.06
        assert stats.kstest(np.concatenate([a, b, c]).ravel(), "norm").pvalue > 1e-3
        assert a.dtype == np.float32


def test_invalid_requests_are_refused():
    def draw(case):
        kind, seed, n = case
        torch_normal(kind, seed, [(n,)])

    cases = [
        (("torch", 0, 16), "Unknown noise 'torch': choose one of torch-cpu, torch-cuda."),
        (("torch-cpu", -1, 16), r"seed must be in \[0, 2\*\*64\), not -1"),
        (("torch-cuda", 2**64, 16), r"seed must be in \[0, 2\*\*64\)"),
        (("torch-cpu", 0, 15), "at least 16 values, not 15: draw more pixels"),
    ]
    assert_refused(draw, cases)
