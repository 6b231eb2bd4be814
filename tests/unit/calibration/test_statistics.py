import pytest
import torch

from effllm.modules.calibration.statistics import Energy, Gram, Tokens, output_error
from effllm.modules.errors import ConfigError, NumericalError
from effllm.modules.sds.space import Coordinates


@pytest.mark.parametrize("columns", [5, 384, 801])
def test_gram_is_the_mean_outer_product_whatever_the_batches(columns, generator):
    inputs = torch.randn(50, columns, generator=generator)
    gram, energy, tokens = Gram(columns), Energy(columns), Tokens(columns)
    for batch in inputs.split([7, 1, 42]):
        for statistic in (gram, energy, tokens):
            statistic.update(batch.reshape(1, *batch.shape))
    expected = inputs.double().T @ inputs.double() / 50
    torch.testing.assert_close(gram.value().double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(gram.value(), gram.value().T)
    torch.testing.assert_close(energy.value(), gram.value().diagonal())
    assert torch.equal(tokens.value(), inputs)


def test_statistics_are_float32_for_bfloat16_inputs(generator):
    inputs = torch.randn(4096, 3, generator=generator).bfloat16()
    gram = Gram(3)
    gram.update(inputs)
    expected = inputs.double().T @ inputs.double() / 4096
    torch.testing.assert_close(gram.value().double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("statistic", [Gram, Energy, Tokens])
def test_bad_inputs_are_refused(statistic):
    running = statistic(2)
    with pytest.raises(NumericalError, match="no token"):
        running.value()
    running.update(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(NumericalError, match="not finite"):
        running.value()


def test_output_error_is_the_squared_error_of_the_outputs(problem):
    weight, inputs, gram = problem()
    changed = weight * (weight.abs() > 0.5)
    error = ((weight - changed) @ inputs.T).square().sum() / (weight @ inputs.T).square().sum()
    assert output_error(weight, changed, gram.float()) == pytest.approx(float(error), rel=1e-4)
    assert output_error(weight, weight, gram.float()) == 0


def test_a_space_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="space must be raw or scaled, found 'scald'"):
        Coordinates.of(torch.eye(3), "scald")
