"""Tables of `nvidia-smi topo -m`."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.errors import UserError
from profiler.link_files import nvidia_topo_from_text, read_nvidia_topo
from tests.fuzz import changed, fuzz

PATH = Path(__file__).parent / "links" / "topo-h100.txt"
TEXT = PATH.read_text()
OLD = """\
        GPU0    GPU1    mlx5_0  mlx5_1  CPU Affinity
GPU0     X      NV1     PIX     PIX     0-19
GPU1    NV1      X      SOC     SOC     20-39
mlx5_0  PIX     SOC      X      PIX
mlx5_1  PIX     SOC     PIX      X

Legend:

  X   = Self
"""


def refused(text: str) -> UserError:
    with pytest.raises(UserError) as caught:
        nvidia_topo_from_text(text, "f")
    return caught.value


@pytest.mark.parametrize("text", [TEXT, TEXT.expandtabs(), "$ nvidia-smi topo -m\n" + TEXT])
def test_gpus_and_nics_by_the_names_of_their_devices(text: str) -> None:
    topo = nvidia_topo_from_text(text, "f")
    assert topo.gpus == ("GPU0", "GPU1")
    assert topo.nics == ("mlx5_0", "mlx5_3", "mlx5_bond_0")
    assert topo.kind("GPU0", "GPU1") == "NV18"
    assert topo.kind("mlx5_3", "GPU0") == "NODE"
    assert topo.kind("GPU1", "GPU1") == "X"
    assert topo.nearest_nics("GPU0") == ("mlx5_0",)
    assert topo.nearest_nics("GPU1") == ("mlx5_bond_0",)
    assert topo.cpus == ("0-55,112-167", "56-111,168-223")
    assert topo.numa == ("0", "1")


def test_nics_named_in_the_table_and_words_of_old_drivers() -> None:
    topo = nvidia_topo_from_text(OLD, "f")
    assert topo.nics == ("mlx5_0", "mlx5_1")
    assert topo.kind("GPU1", "mlx5_0") == "SYS"
    assert topo.nearest_nics("GPU0") == topo.nearest_nics("GPU1") == ("mlx5_0", "mlx5_1")
    assert (topo.cpus, topo.numa) == (("0-19", "20-39"), ("", ""))


def test_one_gpu_and_no_nic(tmp_path: Path) -> None:
    path = tmp_path / "topo"
    path.write_text("\tGPU0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\nGPU0\t X \t0-7\t\t\tN/A\n")
    topo = read_nvidia_topo(path)
    assert (topo.gpus, topo.nics, topo.nearest_nics("GPU0")) == (("GPU0",), (), ())


def test_an_unknown_device_is_told() -> None:
    with pytest.raises(UserError, match="no device `mlx5_9`"):
        nvidia_topo_from_text(TEXT, "f").kind("GPU0", "mlx5_9")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no devices were found", "f: this is no table of `nvidia-smi topo -m`"),
        (TEXT.replace("NIC1\tNODE", "NICx\tNODE"), "f:5: the row of `NIC1` is missing"),
        ("GPU0 GPU1\nGPU0 X NV1", "f:2: the row of `GPU1` is missing"),
        (OLD.replace("20-39", "").replace("SOC     SOC", "SOC", 1),
         "f:3: the row of `GPU1` has 3 links, but there are 4 devices"),
        (TEXT.replace("\tNV18\tPIX", "\tOK\tPIX"),
         "f:2: `OK` is no link between `GPU0` and `GPU1`"),
        (TEXT.replace("GPU0\t X ", "GPU0\tSYS"), "f:2: `SYS` is no link between `GPU0` and `GPU0`"),
        (OLD.replace("mlx5_1", "mlx5_0"), "f:1: device `mlx5_0` is listed twice"),
        (TEXT.replace("NIC1: mlx5_3", "NIC1: mlx5_0"),
         "f: two NICs have the same name in the legend"),
    ],
)  # fmt: skip
def test_a_table_that_is_wrong_is_told_by_its_line(text: str, message: str) -> None:
    assert str(refused(text)) == message


WORDS = st.sampled_from(["", "\n", "\t", "X", "NV18", "GPU0", "NIC0", "CPU", "\x1b[0m"])


@fuzz
@given(
    base=st.sampled_from([TEXT, OLD]),
    changes=st.lists(
        st.tuples(st.integers(0, 999), st.integers(0, 9), WORDS | st.text(max_size=4)), max_size=4
    ),
)
def test_any_change_of_a_table_gives_a_topology_or_a_user_error(
    base: str, changes: list[tuple[int, int, str]]
) -> None:
    error: UserError | None = None
    try:
        topo = nvidia_topo_from_text(changed(base, changes), "f")
    except UserError as e:
        error = e
    if error is not None:
        assert str(error.place).startswith("f")
    else:
        for gpu in topo.gpus:
            assert bool(topo.nearest_nics(gpu)) == bool(topo.nics)


@fuzz
@given(text=st.text(max_size=80))
def test_any_text_gives_a_user_error(text: str) -> None:
    refused(text)
