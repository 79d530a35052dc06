"""What the manufacturers of accelerators say about the speed of each."""

from typing import NamedTuple


class Hardware(NamedTuple):
    """The rates of one device, as its manufacturer states them."""

    flops: float  # a second, of matrix products of float32 arrays at JAX's default precision
    flops_bfloat16: float
    bandwidth: float  # bytes a second from and to its memory
    memory: float  # bytes
    links: float  # bytes a second that it can send to others, over all of its links
    between_hosts: float = 0.0  # the same to other hosts, where that is less


# Pages "TPU v4" to "TPU7x" of Google Cloud's documentation, and for one-way rates of links the
# chapter on TPUs of Austin et al., "How to Scale Your Model" (2025). NVIDIA's data sheets: dense
# matrix products in TF32 and bfloat16, NVLink in one direction; 400 Gbit/s between hosts for a GPU.
HARDWARE = {
    "tpu_v4": Hardware(275e12, 275e12, 1.228e12, 32e9, 6 * 45e9),
    "tpu_v5e": Hardware(197e12, 197e12, 0.819e12, 16e9, 4 * 45e9),
    "tpu_v5p": Hardware(459e12, 459e12, 2.765e12, 95e9, 6 * 90e9),
    "tpu_v6e": Hardware(918e12, 918e12, 1.64e12, 32e9, 4 * 90e9),
    "tpu_7x": Hardware(2307e12, 2307e12, 7.38e12, 192e9, 6 * 100e9),
    "a100": Hardware(156e12, 312e12, 2.039e12, 80e9, 300e9, 50e9),
    "h100": Hardware(494e12, 989e12, 3.35e12, 80e9, 450e9, 50e9),
    "h200": Hardware(494e12, 989e12, 4.8e12, 141e9, 450e9, 50e9),
    "b200": Hardware(1125e12, 2250e12, 7.7e12, 180e9, 900e9, 50e9),
}
