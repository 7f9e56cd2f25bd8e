"""What `import lineardit` offers, and how little it costs."""

import subprocess
import sys

import pytest

import lineardit

PUBLIC = {
    "Autoencoder",
    "LinearDiT",
    "LineardiTError",
    "Pipeline",
    "SoftmaxDiT",
    "Transformer",
    "linear_attention",
    "linear_attention_state",
}


def test_the_public_names_are_exactly_these() -> None:
    assert set(lineardit.__all__) == PUBLIC
    assert dir(lineardit) == sorted(PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_is_there_under_its_own_name(name: str) -> None:
    assert getattr(lineardit, name).__name__ == name


def test_another_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Pipelines'; it has Autoencoder, .*Pipeline,"):
        _ = lineardit.Pipelines


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, lineardit; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'PIL')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_drawing_does_not_wait_for_a_compiler_to_be_imported() -> None:
    names = "('torch._dynamo', 'torch._inductor', 'triton', 'transformers')"
    code = f"import sys, lineardit.pipeline; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
