package org.tornadomoe.checkpoint.family;

import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.LayerReader;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.JsonFile;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;

/** Reads a config.json in the words of a family's {@link FamilyTraits}. */
final class FamilyReader {
    /** No published model has a tenth of them. */
    private static final int MAX_LAYERS = 10_000;

    private final FamilyTraits traits;

    FamilyReader(FamilyTraits traits) {
        this.traits = traits;
    }

    /** What in the configuration makes that layer a dense one; null if it is an MoE layer. */
    @Nullable
    String whyDense(JsonFile json, int layer) {
        return FamilyTraits.first(traits.rules, ofTexts(json), layer);
    }

    /** Layers of the encoder, or of the model where it has none. */
    int encoderLayers(JsonFile json) {
        return json.positive(traits.layersField, traits.layers);
    }

    /** The number of a layer in the decoder, negative in the encoder. */
    int inDecoder(JsonFile json, int layer) {
        return traits.decoderLayers == null ? -1 : layer - encoderLayers(json);
    }

    /** The configuration as that layer has it. */
    JsonFile at(JsonFile whole, int layer) {
        JsonFile json = ofBlock(ofStack(ofTexts(whole), layer), layer);
        if (traits.perLayer.stream().noneMatch(field -> json.fields().get(field) instanceof List<?>)) {
            return json;
        }
        Map<String, @Nullable Object> own = new LinkedHashMap<>(json.fields());
        for (String field : traits.perLayer) {
            if (json.fields().get(field) instanceof List<?> each) {
                if (each.isEmpty() && (field.equals(traits.stepLimit) || field.equals(traits.sharedStepLimit))) {
                    own.put(field, null);
                    continue;
                }
                if (layer >= each.size()) {
                    throw json.wrong(field, "a value for each of " + layers(json) + " layers");
                }
                own.put(field, each.get(layer));
            }
        }
        return new JsonFile(json.file(), own);
    }

    private JsonFile ofStack(JsonFile json, int layer) {
        if (inDecoder(json, layer) < 0) {
            return json;
        }
        Map<String, @Nullable Object> own = new LinkedHashMap<>(json.fields());
        own.put(traits.width, json.positive(traits.decoderWidth, traits.intermediate));
        return new JsonFile(json.file(), own);
    }

    private JsonFile ofBlock(JsonFile json, int layer) {
        if (traits.blocks == null
                || !(json.fields().get(traits.blocks) instanceof List<?> each)
                || layer >= each.size()
                || !(each.get(layer) instanceof Map<?, ?> block)) {
            return json;
        }
        Map<String, @Nullable Object> own = new LinkedHashMap<>(json.fields());
        block.forEach((field, value) -> {
            if (value != null) {
                own.put(String.valueOf(field), value);
            }
        });
        return new JsonFile(json.file(), own);
    }

    private JsonFile ofTexts(JsonFile json) {
        Map<String, @Nullable Object> own = new LinkedHashMap<>(json.fields());
        own.replaceAll(
                (field, value) -> traits.ofTexts.contains(field) && value instanceof List<?> both && !both.isEmpty()
                        ? both.getFirst()
                        : value);
        return traits.ofTexts.isEmpty() ? json : new JsonFile(json.file(), own);
    }

    /** The first layer with experts, where they differ from layer to layer; 0 if there is none, or they don't. */
    int firstSparse(JsonFile json) {
        if (traits.tabled.test(json, 0)) {
            return IntStream.range(0, layers(json))
                    .filter(layer -> !traits.tabled.test(json, layer))
                    .findFirst()
                    .orElse(0);
        }
        if (traits.blocks == null
                && traits.perLayer.stream().noneMatch(field -> json.fields().get(field) instanceof List<?>)) {
            return 0;
        }
        return IntStream.range(0, layers(json))
                .filter(layer -> whyDense(json, layer) == null)
                .findFirst()
                .orElse(0);
    }

    int layers(JsonFile json) {
        int number = traits.layerList == null
                ? encoderLayers(json)
                : traits.layerList.apply(json).size();
        if (traits.decoderLayers != null && number <= MAX_LAYERS) {
            number += Math.min(MAX_LAYERS, json.positive(traits.decoderLayers, traits.layers));
        }
        if (number < 1) {
            throw new CheckpointException(json.file(), "has a list of layer types without any");
        }
        if (number > MAX_LAYERS) {
            throw json.wrong(traits.layersField, "at most " + MAX_LAYERS);
        }
        return number;
    }

    /** Width of the shared expert, 0 if there is none. */
    int sharedIntermediate(JsonFile json) {
        if (traits.sharedIf != null && !json.bool(traits.sharedIf, false)) {
            return 0;
        }
        if (traits.sharedWidth != null) {
            return json.nonNegative(traits.sharedWidth, traits.shared);
        }
        if (traits.sharedCount == null) {
            return traits.shared == 0 ? 0 : intermediate(json);
        }
        int count =
                json.nonNegative(traits.sharedCount, json.fields().containsKey(traits.sharedCount) ? 0 : traits.shared);
        long all = (long) count * intermediate(json);
        if (all > Integer.MAX_VALUE) {
            throw json.wrong(traits.sharedCount, "fewer of " + intermediate(json) + " rows each");
        }
        return (int) all;
    }

    private int intermediate(JsonFile json) {
        return json.positive(traits.width, traits.intermediate);
    }

    private int experts(JsonFile json) {
        int number = oneOf(json, traits.expertsFields, traits.experts);
        if (number < 1 || number > FusedMoeConfig.MAX_EXPERTS) {
            throw json.wrong(
                    traits.expertsFields.stream().filter(json::has).findFirst().orElseThrow(),
                    "1 to " + FusedMoeConfig.MAX_EXPERTS);
        }
        return number;
    }

    /** The number under any of these names, which must agree. */
    private static int oneOf(JsonFile json, List<String> names, int absent) {
        List<String> there = names.stream().filter(json.fields()::containsKey).toList();
        if (there.isEmpty() && absent == 0) {
            throw new CheckpointException(json.file(), "has no '" + names.getFirst() + "'");
        }
        int value = there.isEmpty() ? absent : json.requireInteger(there.getFirst(), absent);
        for (String other : there) {
            if (json.requireInteger(other, absent) != value) {
                throw json.wrong(other, "as many as '" + there.getFirst() + "' = " + value);
            }
        }
        return value;
    }

    /** A layer's configuration, for calls of one token; IllegalArgumentException where numbers don't fit together. */
    FusedMoeConfig config(JsonFile whole, int layer) {
        JsonFile json = at(whole, layer);
        int wide = intermediate(json);
        int sharedWide = sharedIntermediate(json);
        MoeActivation function = activation(json);
        Double cut = limit(json);
        if (cut != null && cut == 0 && traits.unlimitedIf0) {
            cut = null;
        }
        if (cut != null && traits.limitField != null && cut <= 0) {
            throw json.wrong(traits.limitField, "a positive number");
        }
        if (cut != null && function != MoeActivation.SILU && traits.ownActivation == null) {
            throw json.wrong(traits.activationField, "silu beside a '" + traits.limitField + "' of " + cut);
        }
        FusedMoeConfig.Builder builder = FusedMoeConfig.builder()
                .numExperts(experts(json))
                .expertsPerToken(oneOf(json, traits.topKFields, traits.topK))
                .hiddenDim(json.positive(traits.hiddenField, traits.hidden))
                .intermediateSize(wide + traits.besideEach)
                .numFusedSharedExperts(Math.ceilDiv(sharedWide, wide))
                .activation(function)
                .swigluLimit(cut)
                .swigluAlpha(
                        traits.alphaField == null || traits.alpha == null
                                ? traits.alpha
                                : (Double) json.finite(traits.alphaField, traits.alpha))
                .swigluBeta(traits.beta)
                .activationSituBeta(situ(json, traits.situBeta))
                .activationSituLinearBeta(situ(json, traits.situLinearBeta))
                .sharedSwigluLimit(traits.sharedUnlimited && cut != null ? 0.0 : null)
                .router(traits.tabled.test(whole, layer) ? tabled(json) : router(json, sharedWide > 0))
                .hasBias(traits.biased)
                .applyRouterWeightOnInput(traits.weighsInput)
                .maxNumTokens(1);
        if (traits.stepLimit != null && traits.sharedStepLimit != null) {
            double routed = json.has(traits.stepLimit) ? json.finite(traits.stepLimit, 0) : 0;
            double other = json.has(traits.sharedStepLimit) ? json.finite(traits.sharedStepLimit, 0) : 0;
            if (routed != 0 || (other != 0 && sharedWide > 0)) {
                builder.activation(MoeActivation.SWIGLUSTEP)
                        .swigluLimit(routed == 0 ? (double) Float.MAX_VALUE : routed)
                        .sharedSwigluLimit(other);
            }
        }
        return builder.build();
    }

    private static @Nullable Double situ(JsonFile json, @Nullable String field) {
        return field == null || !json.has(field) ? null : (Double) json.finite(field, 0);
    }

    private @Nullable Double limit(JsonFile json) {
        if (traits.limitField == null
                || (json.fields().containsKey(traits.limitField)
                        && !json.has(traits.limitField)
                        && traits.limit == null)) {
            return traits.limit;
        }
        return json.fields().containsKey(traits.limitField)
                ? Double.valueOf(json.finite(traits.limitField, 0))
                : traits.limit;
    }

    private RouterConfig router(JsonFile json, boolean hasShared) {
        boolean divided = traits.normalized;
        if (traits.normalizedField != null) {
            divided = json.bool(
                    traits.normalizedField, traits.normalized && !json.fields().containsKey(traits.normalizedField));
        }
        RouterConfig router = new RouterConfig(
                traits.scoring,
                traits.scoresChosenOnly,
                divided,
                traits.correctedIf == null ? traits.corrected : json.bool(traits.correctedIf, traits.corrected),
                0,
                0,
                traits.factorField == null ? traits.factor : factor(json, traits.factorField),
                traits.zeroExperts == null ? traits.zero : json.nonNegative(traits.zeroExperts, traits.zero),
                (traits.sharedGate || (traits.sharedGateIf != null && json.bool(traits.sharedGateIf, false)))
                        && hasShared,
                traits.normalizesShared,
                traits.mixesShared && hasShared,
                0,
                false);
        RouterConfig own = traits.routing.of(this, json, router);
        return traits.groupsField == null ? own : grouped(json, own, traits.groups, traits.groupsTaken);
    }

    /** The choice is a table's; of the rest, how weights are divided and scaled. */
    private RouterConfig tabled(JsonFile json) {
        RouterConfig router = router(json, false);
        return RouterConfig.of(ScoringFunction.TOKEN_TABLE, router.renormalize())
                .withRoutedScalingFactor(router.routedScalingFactor());
    }

    private double factor(JsonFile json, String field) {
        boolean isNull = json.fields().containsKey(field) && !json.has(field);
        return isNull && traits.unscaledIfNull ? 1 : json.finite(field, traits.factor);
    }

    /** By the best groups; null and 0 are none. Groups that the family has and that don't fit are none either. */
    RouterConfig grouped(JsonFile json, RouterConfig router, int absentGroups, int absentTaken) {
        String field = traits.groupsField == null ? "n_group" : traits.groupsField;
        String taken = traits.groupsField == null ? "topk_group" : traits.takenField;
        boolean given = json.fields().containsKey(field);
        int number = given ? json.nonNegative(field, 0) : absentGroups;
        int all = experts(json);
        int smallest = router.hasCorrectionBias() ? 2 : 1; // a group's score is the sum of so many
        boolean fits = number < 2 || (all % number == 0 && all / number >= smallest);
        if (given && !fits) {
            throw json.wrong(field, "a divisor of the " + all + " experts with at least " + smallest + " a group");
        }
        int kept = json.fields().containsKey(taken) ? json.nonNegative(taken, 0) : absentTaken;
        boolean one = number == 1 && !(json.has(taken) && kept == 0);
        if (number == 0 || one || !fits) {
            return router;
        }
        if (kept < 1 || kept > number) {
            throw new CheckpointException(
                    json.file(), "'" + taken + "': expected 1 to " + field + " = " + number + ", got " + kept);
        }
        return router.withGroups(number, kept);
    }

    /** By the names that transformers has for them. */
    private MoeActivation activation(JsonFile json) {
        if (traits.ownActivation != null) {
            return traits.ownActivation;
        }
        MoeActivation found = switch (json.string(traits.activationField, traits.activation)) {
            case "silu", "swish" -> MoeActivation.SILU;
            case "gelu" -> MoeActivation.GELU;
            case "gelu_pytorch_tanh", "gelu_new" -> MoeActivation.GELU_TANH;
            case "relu" -> MoeActivation.RELU;
            case "relu2" -> MoeActivation.RELU2;
            case String situ when situ.equals("situ") && traits.situBeta != null -> MoeActivation.SITU;
            default ->
                throw json.wrong(
                        traits.activationField, "silu, swish, gelu, gelu_new, gelu_pytorch_tanh, relu or relu2");
        };
        return traits.gated ? found : found.withoutMul();
    }

    /** What {@link LayerReader} has to find in a layer. */
    LayerShape shape(JsonFile whole, int layer) {
        JsonFile json = at(whole, layer);
        FusedMoeConfig config = config(whole, layer);
        boolean table = config.router().scoring() == ScoringFunction.TOKEN_TABLE;
        return new LayerShape(
                config.numExperts(),
                config.hiddenDim(),
                intermediate(json),
                sharedIntermediate(json),
                config.activation().isInterleaved(),
                config.router().hasCorrectionBias(),
                config.router().numZeroExperts(),
                config.activation().isGated(),
                (float) traits.sharedScale.applyAsDouble(json),
                table ? config.expertsPerToken() : 0,
                traits.networkWidth == null
                        ? null
                        : new LayerShape.Network(
                                json.positive(traits.networkWidth, traits.network),
                                json.finite("rms_norm_eps", 1e-5),
                                layer > 0),
                home(json, layer),
                stack(whole, layer),
                latent(json),
                Set.copyOf(traits.peculiarities));
    }

    /** The layer or bank in which that layer's experts are. */
    private int home(JsonFile json, int layer) {
        if (traits.banksField != null) {
            return layer % json.positive(traits.banksField, traits.banks);
        }
        if (traits.sharingField == null) {
            return layer;
        }
        int first = json.nonNegative(traits.firstSharingField, 0);
        return layer < first ? layer : layer - (layer - first) % json.positive(traits.sharingField, 1);
    }

    private LayerShape.@Nullable Latent latent(JsonFile json) {
        return traits.latentField == null || !json.has(traits.latentField)
                ? null
                : new LayerShape.Latent(
                        json.positive(traits.latentField, 1),
                        json.bool(traits.latentNormField, false),
                        json.finite("rms_norm_eps", 1e-5));
    }

    private LayerShape.@Nullable Stack stack(JsonFile json, int layer) {
        int inDecoder = inDecoder(json, layer);
        return traits.decoderLayers == null
                ? null
                : inDecoder < 0 ? new LayerShape.Stack("encoder.", layer) : new LayerShape.Stack("decoder.", inDecoder);
    }
}
