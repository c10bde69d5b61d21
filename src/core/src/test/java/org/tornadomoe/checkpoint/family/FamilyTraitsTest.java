package org.tornadomoe.checkpoint.family;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;
import static org.tornadomoe.checkpoint.family.FamilyTraits.sizes;

import java.nio.file.Path;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.JsonFile;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;

/** Each word that a family is described in, in families that there aren't. */
class FamilyTraitsTest {
    /** Fields and their values one after the other. */
    private static JsonFile json(@Nullable Object... fields) {
        Map<String, @Nullable Object> all = new LinkedHashMap<>();
        for (int at = 0; at < fields.length; at += 2) {
            all.put(String.valueOf(fields[at]), fields[at + 1]);
        }
        return new JsonFile(Path.of("config.json"), all);
    }

    private static FamilyTraits small() {
        return sizes(6, 64, 16, 8, 2);
    }

    private static FusedMoeConfig config(FamilyTraits family, @Nullable Object... fields) {
        return family.reader().config(json(fields), 0);
    }

    private static void assertRefused(FamilyTraits family, String message, @Nullable Object... fields) {
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> config(family, fields))
                .withMessageContaining(message);
    }

    /** The layers that have experts, of six. */
    private static List<Integer> sparse(FamilyTraits family, @Nullable Object... fields) {
        JsonFile json = json(fields);
        return IntStream.range(0, 6)
                .filter(layer -> family.reader().whyDense(json, layer) == null)
                .boxed()
                .toList();
    }

    @Test
    void sizesStandInTheFieldsThatAreSaid() {
        FamilyTraits family = small().modelNames("depth", "width").names("parts", "taken");
        FusedMoeConfig config = config(family, "width", 32, "parts", 4, "taken", 3);
        assertThat(config.hiddenDim()).isEqualTo(32);
        assertThat(config.numExperts()).isEqualTo(4);
        assertThat(config.expertsPerToken()).isEqualTo(3);
        assertThat(family.reader().layers(json("depth", 3))).isEqualTo(3);
        assertThat(family.reader().layers(json())).isEqualTo(6);
        assertThat(family.reader().layers(json("depth", 10_000))).isEqualTo(10_000);
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> family.reader().layers(json("depth", 10_001)))
                .withMessageContaining("'depth': expected at most 10000, got 10001");
        assertThat(family.fields()).contains("depth", "width", "parts", "taken");
        assertRefused(family, "'num_experts': expected as many as 'parts' = 4, got 5", "parts", 4, "num_experts", 5);
        // One of the usual names is the first of them, and there once.
        assertThat(small().names("num_local_experts", "experts_per_token").sizeFields())
                .containsExactlyInAnyOrderElementsOf(small().sizeFields())
                .startsWith("num_local_experts")
                .doesNotHaveDuplicates();
    }

    @Test
    void expertsAreOneToTheMostThatThereAre() {
        assertThat(config(small(), "num_experts", 1, "num_experts_per_tok", 1).numExperts())
                .isEqualTo(1);
        assertThat(config(small(), "num_experts", FusedMoeConfig.MAX_EXPERTS).numExperts())
                .isEqualTo(FusedMoeConfig.MAX_EXPERTS);
        assertRefused(small(), "'num_experts': expected 1 to " + FusedMoeConfig.MAX_EXPERTS, "num_experts", 0);
        assertRefused(
                small(),
                "'num_experts': expected 1 to " + FusedMoeConfig.MAX_EXPERTS,
                "num_experts",
                FusedMoeConfig.MAX_EXPERTS + 1);
    }

    @Test
    void scoresAndWhatBecomesOfThem() {
        assertThat(config(small()).router()).isEqualTo(RouterConfig.of(ScoringFunction.SOFTMAX, false));
        assertThat(config(small().chosenFirst().normalized()).router()).isEqualTo(RouterConfig.topKThenSoftmax());
        assertThat(config(small().sigmoid().normalized("divide", true), "divide", false)
                        .router())
                .isEqualTo(RouterConfig.of(ScoringFunction.SIGMOID, false));
        assertThat(config(small().sigmoid().corrected()).router())
                .isEqualTo(RouterConfig.of(ScoringFunction.SIGMOID, false).withCorrectionBias());
        assertThat(config(small().sigmoid().correctedIf("bias", true), "bias", false)
                        .router())
                .isEqualTo(RouterConfig.of(ScoringFunction.SIGMOID, false));
        assertThat(config(small().scaled("factor", 3)).router().routedScalingFactor())
                .isEqualTo(3);
        FusedMoeConfig shared =
                config(small().sigmoid().normalized().shared("beside", 2).normalizesShared());
        assertThat(shared.router().normalizesShared()).isTrue();
        assertThat(shared.numFusedSharedExperts()).isEqualTo(2);
        LayerShape network = small().network("router_width", 4).reader().shape(json("num_experts_per_tok", 1), 1);
        assertThat(network.network()).isEqualTo(new LayerShape.Network(4, 1e-5, true));
    }

    @Test
    void widthsOfExpertsAndOfWhatIsBesideThem() {
        JsonFile plain = json();
        assertThat(config(small().width("wide"), "wide", 24).intermediateSize()).isEqualTo(24);
        assertThat(small().shared("beside", 2).reader().sharedIntermediate(plain))
                .isEqualTo(32);
        assertThat(small().shared("beside", 2).reader().sharedIntermediate(json("beside", null)))
                .isZero();
        assertThat(small().sharedWidth("beside", 40).reader().sharedIntermediate(plain))
                .isEqualTo(40);
        assertThat(small().oneShared().reader().sharedIntermediate(plain)).isEqualTo(16);
        FamilyTraits dense = small().denseBeside("is_there", "beside", 40);
        assertThat(dense.reader().sharedIntermediate(plain)).isZero();
        assertThat(dense.reader().sharedIntermediate(json("is_there", true))).isEqualTo(40);
        assertThat(dense.reader().shape(plain, 0).has(LayerShape.Peculiarity.DENSE_BESIDE))
                .isTrue();
        LayerShape adjugates = small().adjugates().reader().shape(plain, 0);
        assertThat(adjugates.has(LayerShape.Peculiarity.ADJUGATES)).isTrue();
        assertThat(config(small().adjugates()).intermediateSize()).isEqualTo(16 + LayerShape.ADJUGATE_WIDTH);
        // As many rows as can be counted, and one expert's more.
        FamilyTraits wide = small().shared("beside", 0);
        assertThat(wide.reader().sharedIntermediate(json("moe_intermediate_size", 1, "beside", Integer.MAX_VALUE)))
                .isEqualTo(Integer.MAX_VALUE);
        assertRefused(wide, "'beside': expected fewer of 16 rows each", "beside", 1 << 27);
    }

    @Test
    void whatIsDoneWithSharedExpertsAndOutputs() {
        RouterConfig gated = config(small().oneShared().sharedGate()).router();
        assertThat(gated.hasSharedExpertGate()).isTrue();
        assertThat(config(small().sharedGate()).router().hasSharedExpertGate()).isFalse();
        assertThat(config(small().zeroExperts("nothing", 3)).router().numZeroExperts())
                .isEqualTo(3);
        assertThat(config(small().scaled("factor", 3).unscaledIfNull(), "factor", null)
                        .router()
                        .routedScalingFactor())
                .isEqualTo(1);
        assertRefused(small().scaled("factor", 3), "'factor'", "factor", null);
        assertThat(config(small().weighsInput(), "num_experts_per_tok", 1).applyRouterWeightOnInput())
                .isTrue();
        assertThat(config(
                                small().routing((_, json, router) ->
                                        router.withRoutedScalingFactor(json.finite("own", 0))),
                                "own",
                                7)
                        .router()
                        .routedScalingFactor())
                .isEqualTo(7);
        assertThat(small().sharedScale(json -> json.finite("half", 1))
                        .reader()
                        .shape(json("half", 0.5), 0)
                        .sharedScale())
                .isEqualTo(0.5f);
        assertThat(small().tensors(LayerShape.Peculiarity.LATENT)
                        .reader()
                        .shape(json(), 0)
                        .has(LayerShape.Peculiarity.LATENT))
                .isTrue();
    }

    /** An encoder of six layers and a decoder whose experts have another width. */
    @Test
    void layersOfADecoderComeAfterThoseOfTheEncoder() {
        FamilyTraits family = small().decoder("decoders", "decoder_width");
        JsonFile both = json("decoders", 2, "decoder_width", 48);
        assertThat(family.reader().layers(both)).isEqualTo(8);
        assertThat(family.reader().layers(json("decoders", 10_000 - 6))).isEqualTo(10_000);
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> family.reader().layers(json("decoders", 10_000 - 5)))
                .withMessageContaining("expected at most 10000");
        assertThat(family.reader().config(both, 5).intermediateSize()).isEqualTo(16);
        assertThat(family.reader().config(both, 6).intermediateSize()).isEqualTo(48);
        assertThat(family.reader().shape(both, 5).stack()).isEqualTo(new LayerShape.Stack("encoder.", 5));
        assertThat(family.reader().shape(both, 7).stack()).isEqualTo(new LayerShape.Stack("decoder.", 1));
    }

    /** Of lists the texts' value is the first. */
    @Test
    void picturesHaveTheSecondValueOfAList() {
        FamilyTraits family = small().firstOf("moe_intermediate_size", "num_experts");
        FusedMoeConfig config = config(family, "moe_intermediate_size", List.of(24, 8), "num_experts", List.of(4, 2));
        assertThat(config.intermediateSize()).isEqualTo(24);
        assertThat(config.numExperts()).isEqualTo(4);
        assertThat(family.reader().shape(json(), 0).has(LayerShape.Peculiarity.OF_PICTURES))
                .isTrue();
    }

    /** Number and kept; the family has 8 experts and a correction bias, so that a group has two at least. */
    @ParameterizedTest
    @CsvSource({"4, 1, true", "4, 4, true", "2, 1, true", "4, 0, false", "4, 5, false", "3, 1, false", "8, 1, false"})
    void groupsHaveTwoExpertsAtLeast(int number, int kept, boolean fits) {
        FamilyTraits family = small().sigmoid().corrected().groups("groups", "kept", 1, 1);
        if (fits) {
            RouterConfig router = config(family, "groups", number, "kept", kept).router();
            assertThat(router.numExpertGroup()).isEqualTo(number);
            assertThat(router.topkGroup()).isEqualTo(kept);
        } else {
            assertRefused(family, ": expected ", "groups", number, "kept", kept);
        }
    }

    @Test
    void twoGroupsOfAnOddNumberAreRefused() {
        FamilyTraits family = small().groups("groups", "kept", 1, 1);
        assertRefused(family, "'groups': expected a divisor of the 7", "num_experts", 7, "groups", 2, "kept", 1);
        assertThat(config(family, "groups", 8, "kept", 3).router().numExpertGroup())
                .isEqualTo(8);
    }

    @Test
    void activationsAndWhereTheyAreCutOff() {
        assertThat(config(small().activation("own_act", "gelu")).activation()).isEqualTo(MoeActivation.GELU);
        assertThat(config(small().activates(MoeActivation.SWIGLUOAI, 1.5, 2.0)).swigluAlpha())
                .isEqualTo(1.5);
        assertThat(config(small().limited("limit", 3.0)).swigluLimit()).isEqualTo(3.0);
        assertThat(config(small().limited("limit", 3.0), "limit", 2).swigluLimit())
                .isEqualTo(2.0);
        assertThat(config(small().limited("limit", null), "limit", null).swigluLimit())
                .isNull();
        assertThat(config(small().limited("limit", null)).swigluLimit()).isNull();
        assertRefused(small().limited("limit", 3.0), "'limit'", "limit", null);
        assertThat(config(small().limited(4.0)).swigluLimit()).isEqualTo(4.0);
        FamilyTraits clamped =
                small().activates(MoeActivation.SWIGLUOAI, 1.5, 2.0).alpha("alpha");
        assertThat(config(clamped).swigluAlpha()).isEqualTo(1.5);
        assertThat(config(clamped, "alpha", 1.25).swigluAlpha()).isEqualTo(1.25);
        assertThat(config(small().activates(MoeActivation.SWIGLUOAI, null, null).alpha("alpha"), "alpha", 3)
                        .swigluAlpha())
                .as("a family without an alpha")
                .isNull();
        assertThat(config(small().limited(4.0).sharedUnlimited()).sharedSwigluLimit())
                .isZero();
        assertThat(config(small().sharedUnlimited()).sharedSwigluLimit()).isNull();
        assertThat(config(small().withoutGate()).activation()).isEqualTo(MoeActivation.SILU_NO_MUL);
        assertThat(config(small().biased()).hasBias()).isTrue();
    }

    /** Limits after the activation: the routed experts', the shared one's, whether there is one, and what is run. */
    @ParameterizedTest
    @CsvSource({
        "0, 0, 1, SILU",
        "5, 0, 0, SWIGLUSTEP",
        "5, 0, 1, SWIGLUSTEP",
        "0, 6, 1, SWIGLUSTEP",
        "0, 6, 0, SILU",
        "5, 6, 1, SWIGLUSTEP"
    })
    void limitsAfterTheActivation(double routed, double sharedToo, int shared, MoeActivation run) {
        FamilyTraits family = small().shared("beside", 0).stepLimits("limits", "limits_shared");
        FusedMoeConfig config =
                config(family, "beside", shared, "limits", List.of(routed), "limits_shared", List.of(sharedToo));
        assertThat(config.activation()).isEqualTo(run);
        if (run == MoeActivation.SWIGLUSTEP) {
            assertThat(config.swigluLimit()).isEqualTo(routed == 0 ? Float.MAX_VALUE : routed);
            assertThat(config.sharedSwigluLimit()).isEqualTo(sharedToo);
        }
    }

    @Test
    void denseLayers() {
        assertThat(sparse(small())).containsExactly(0, 1, 2, 3, 4, 5);
        assertThat(sparse(small().denseFirst("first", 2))).containsExactly(2, 3, 4, 5);
        assertThat(sparse(small().every("step"), "step", 3)).containsExactly(0, 3);
        assertThat(sparse(small().lastOfEvery("step"), "step", 3)).containsExactly(2, 5);
        assertThat(sparse(small().denseIn("dense"), "dense", List.of(0, 4))).containsExactly(1, 2, 3, 5);
        assertThat(sparse(small().dense((_, layer) -> layer == 1 ? "odd" : null)))
                .containsExactly(0, 2, 3, 4, 5);
        FamilyTraits typed = small().denseFirst("first", 2).layerTypes("types", "moe");
        assertThat(sparse(typed)).containsExactly(2, 3, 4, 5);
        assertThat(sparse(typed, "types", List.of("moe", "dense", "moe"))).containsExactly(0, 2);
        FamilyTraits listed = small().layerList(json -> json.strings("types"), "moe");
        assertThat(sparse(listed, "types", List.of("moe", "mlp", "moe"))).containsExactly(0, 2);
        assertThat(listed.reader().layers(json("types", List.of("moe")))).isEqualTo(1);
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> listed.reader().layers(json("types", List.of())))
                .withMessageContaining("has a list of layer types without any");
    }

    @Test
    void fieldsMayHaveAValueForEachLayer() {
        FamilyTraits family =
                small().fields("more fields=1").perLayer("num_experts").denseFirst("first", 0);
        assertThat(family.fields()).contains("more", "fields=1", "first");
        JsonFile plain = json("num_experts", 4);
        assertThat(family.reader().at(plain, 3)).isSameAs(plain);
        assertThat(family.reader().firstSparse(json("first", 2))).isZero();
        JsonFile each = json("num_experts", List.of(1, 1, 4, 4, 4, 4), "first", 2);
        assertThat(family.reader().at(each, 2).fields()).containsEntry("num_experts", 4);
        assertThat(family.reader().firstSparse(each)).isEqualTo(2);
        assertThat(family.reader().firstSparse(json("num_experts", Collections.nCopies(6, 4), "first", 6)))
                .isZero();
    }

    @Test
    void theFirstLayerWithoutATableTellsOfTheOthers() {
        FamilyTraits family = small().tokenTable((json, layer) -> layer < json.integer("tables"));
        assertThat(family.reader().firstSparse(json("tables", 0))).isZero();
        assertThat(family.reader().firstSparse(json("tables", 2))).isEqualTo(2);
        assertThat(family.reader().firstSparse(json("tables", 6))).isZero();
        assertThat(config(family, "tables", 1).router().scoring()).isEqualTo(ScoringFunction.TOKEN_TABLE);
        assertThat(family.reader().config(json("tables", 1), 1).router().scoring())
                .isEqualTo(ScoringFunction.SOFTMAX);
    }
}
