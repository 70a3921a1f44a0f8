import numpy as np
import pytest

from odvae_jax import ODVAEConfig
from odvae_jax.parameters import abstract_model, named_parameters

COUNTS = {
    "v1": 244_800_231,
    "v2": 171_367_143,
    "v3": 228_868_071,
    "v4": 239_189_991,
    "image": 83_653_863,
}


@pytest.mark.parametrize("structure", COUNTS)
def test_parameter_counts_are_the_papers(structure):
    parameters = named_parameters(abstract_model(ODVAEConfig(structure=structure)))
    assert sum(np.prod(p.shape) for p in parameters.values()) == COUNTS[structure]


def test_config_survives_a_round_trip_through_a_dictionary():
    config = ODVAEConfig.variant(
        2,
        width=16,
        groups=8,
        upsample="linear",
        norm="frame",
        time_upsample="nearest",
        dtype="bfloat16",
    )
    assert ODVAEConfig.from_dict(config.to_dict()) == config
    assert hash(config) == hash(ODVAEConfig.from_dict(config.to_dict()))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    "fields, words",
    [
        ({"widht": 16}, ["'widht'", "did you mean 'width'"]),
        ({"upsample": "cubic"}, ["upsample='cubic'", "nearest", "linear"]),
        ({"structure": "v5"}, ["structure='v5'", "did you mean 'v"]),
        ({"dtype": "int8"}, ["dtype='int8'", "bfloat16"]),
        ({"dtype": "floaty"}, ["dtype='floaty'", "Did you mean 'float"]),
        ({"param_dtype": "float64"}, ["param_dtype='float64'", "float32"]),
        ({"scaling_factor": "abc"}, ["scaling_factor='abc'", "positive"]),
        ({"width": 20, "groups": 32}, ["width=20", "groups=32"]),
        ({"width": 0}, ["width=0", "positive"]),
        ({"precision": "exact"}, ["precision='exact'", "highest"]),
    ],
)
def test_impossible_fields_are_refused_by_name(fields, words):
    with pytest.raises(ValueError) as error:
        ODVAEConfig.from_dict(fields)
    assert all(word in str(error.value) for word in words)


@pytest.mark.usefixtures("unchecked_types")
def test_unknown_variants_are_refused():
    with pytest.raises(ValueError, match="variant 5 is not known; .* 1, 2, 3 and 4"):
        ODVAEConfig.variant(5)
    with pytest.raises(ValueError, match="structure is decided by variant"):
        ODVAEConfig.variant(4, structure="v1")
