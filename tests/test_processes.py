"""Which process of a launch this is, by what launchers set."""

import pytest

from coadapt._processes import is_main_process, num_processes, share_out

LAUNCHERS = {
    "torchrun": ("WORLD_SIZE", "RANK"),
    "intel-mpi": ("PMI_SIZE", "PMI_RANK"),
    "open-mpi": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "mvapich": ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
}


@pytest.fixture(autouse=True)
def no_launch(monkeypatch):
    for names in LAUNCHERS.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_second_of_three_is_not_the_main_process(launcher, monkeypatch):
    number, index = LAUNCHERS[launcher]
    monkeypatch.setenv(number, "3")
    for rank in range(3):
        monkeypatch.setenv(index, str(rank))
        assert num_processes() == 3
        assert is_main_process() == (rank == 0)


def test_a_process_by_itself_is_the_main_process(monkeypatch):
    assert num_processes() == 1
    assert is_main_process()
    monkeypatch.setenv("RANK", "1")  # left over from something else
    assert is_main_process()


def test_a_process_by_itself_does_all_the_work():
    assert share_out([3, 1, 2], lambda item: 2 * item) == [6, 2, 4]
