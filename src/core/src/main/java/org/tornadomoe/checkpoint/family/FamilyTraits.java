package org.tornadomoe.checkpoint.family;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.EnumSet;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.BiPredicate;
import java.util.function.Function;
import java.util.function.ToDoubleFunction;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.LayerReader;
import org.tornadomoe.checkpoint.family.LayerShape.Peculiarity;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.JsonFile;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.config.RouterConfig;
import org.tornadomoe.config.ScoringFunction;

/**
 * What a family's config.json calls things, and what they are where it doesn't say. {@link ModelFamily} describes every
 * family with it, in sentences of these words; what none of them says is as Mixtral has it: a softmax over all, the K
 * best, their scores as they are, no shared expert, SiLU, experts in every layer. A field that a word names is one that
 * is read, and so isn't refused by {@link ExpertFields}.
 */
public final class FamilyTraits {
    /** What config.json may call the number of experts: earlier and later releases of transformers differ. */
    public static final List<String> EXPERTS = List.of("num_experts", "num_local_experts", "n_routed_experts");

    /** What config.json may call K. */
    static final List<String> TOP_K = List.of("num_experts_per_tok", "experts_per_token");

    /** No published model has a tenth of them. */
    private static final int MAX_LAYERS = 10_000;

    /** Makes a layer a dense one. */
    @FunctionalInterface
    interface Rule {
        /** Which fields make that layer a dense one; null if they don't. */
        @Nullable
        String whyDense(JsonFile json, int layer);
    }

    /** Changes what follows from the words, where a family has a way of its own; may refuse. */
    @FunctionalInterface
    interface Routing {
        RouterConfig of(FamilyTraits traits, JsonFile json, RouterConfig router);
    }

    private final int layers;
    private final int hidden;
    private final int intermediate;
    private final int experts;
    private final int topK;

    private @Nullable String sharingField;
    private String firstSharingField = "";
    private String layersField = "num_hidden_layers";
    private String hiddenField = "hidden_size";
    private String width = "moe_intermediate_size";
    private List<String> expertsFields = EXPERTS;
    private List<String> topKFields = TOP_K;
    private ScoringFunction scoring = ScoringFunction.SOFTMAX;
    private boolean scoresChosenOnly;
    private boolean normalized;
    private @Nullable String normalizedField;
    private @Nullable String factorField;
    private double factor = 1;
    private boolean unscaledIfNull;
    private @Nullable String correctedIf;
    private boolean corrected;
    private @Nullable String groupsField;
    private String takenField = "";
    private int groups;
    private int groupsTaken;
    private @Nullable String sharedCount;
    private @Nullable String sharedWidth;
    private @Nullable String sharedIf;
    private int shared;
    private boolean sharedGate;
    private @Nullable String sharedGateIf;
    private @Nullable String zeroExperts;
    private int zero;
    private String activationField = "hidden_act";
    private String activation = "silu";
    private @Nullable MoeActivation ownActivation;
    private boolean gated = true;
    private @Nullable String limitField;
    private @Nullable Double limit;
    private @Nullable Double alpha;
    private @Nullable Double beta;
    private @Nullable String alphaField;
    private boolean sharedUnlimited;
    private boolean unlimitedIf0;
    private boolean biased;
    private int besideEach;
    private boolean weighsInput;
    private boolean normalizesShared;
    private boolean mixesShared;
    private ToDoubleFunction<JsonFile> sharedScale = json -> 1;
    private @Nullable Function<JsonFile, List<String>> layerList;
    private BiPredicate<JsonFile, Integer> tabled = (json, layer) -> false;
    private @Nullable String networkWidth;
    private int network;
    private @Nullable String blocks;
    private @Nullable String stepLimit;
    private @Nullable String sharedStepLimit;
    private @Nullable String decoderLayers;
    private String decoderWidth = "";
    private Routing routing = (traits, json, router) -> router;
    private final List<Rule> rules = new ArrayList<>();
    private final Set<String> fields = new LinkedHashSet<>();
    private final Set<String> perLayer = new LinkedHashSet<>();
    private final Set<String> ofTexts = new LinkedHashSet<>();
    private final Set<Peculiarity> peculiarities = EnumSet.noneOf(Peculiarity.class);

    private FamilyTraits(int layers, int hidden, int intermediate, int experts, int topK) {
        this.layers = layers;
        this.hidden = hidden;
        this.intermediate = intermediate;
        this.experts = experts;
        this.topK = topK;
    }

    /** A layer's numbers where config.json hasn't them; {@code experts} and {@code topK} are 0 if it must. */
    static FamilyTraits sizes(int layers, int hidden, int intermediate, int experts, int topK) {
        return new FamilyTraits(layers, hidden, intermediate, experts, topK);
    }

    /** I stands in that field, and not in {@code moe_intermediate_size}. */
    FamilyTraits width(String field) {
        width = read(field);
        return this;
    }

    /** E and K stand in those fields, too. */
    FamilyTraits names(String experts, String topK) {
        expertsFields = withFirst(read(experts), EXPERTS);
        topKFields = withFirst(read(topK), TOP_K);
        return this;
    }

    /** Layers of the model and H stand in those fields. */
    FamilyTraits modelNames(String layers, String hidden) {
        layersField = read(layers);
        hiddenField = read(hidden);
        return this;
    }

    /**
     * The layers are an encoder's, and after them those of a decoder, which stand in that field as many, and in the
     * other how wide.
     */
    FamilyTraits decoder(String number, String wide) {
        decoderLayers = read(number);
        decoderWidth = read(wide);
        return this;
    }

    private static List<String> withFirst(String first, List<String> others) {
        List<String> all = new ArrayList<>(List.of(first));
        others.stream().filter(other -> !other.equals(first)).forEach(all::add);
        return List.copyOf(all);
    }

    private String read(String field) {
        fields.add(field);
        return field;
    }

    FamilyTraits sigmoid() {
        scoring = ScoringFunction.SIGMOID;
        return this;
    }

    FamilyTraits scored(ScoringFunction function) {
        scoring = function;
        return this;
    }

    /** The choice is made by logits, and the chosen are scored. */
    FamilyTraits chosenFirst() {
        scoresChosenOnly = true;
        return this;
    }

    /** Weights are divided by their sum. */
    FamilyTraits normalized() {
        normalized = true;
        return this;
    }

    /** Whether weights are divided by their sum stands in a field; Python takes null for false. */
    FamilyTraits normalized(String field, boolean absent) {
        normalizedField = read(field);
        normalized = absent;
        return this;
    }

    FamilyTraits scaled(String field, double absent) {
        factorField = read(field);
        factor = absent;
        return this;
    }

    /** Null in that field is 1. */
    FamilyTraits unscaledIfNull() {
        unscaledIfNull = true;
        return this;
    }

    /** A bias an expert is added to scores for the choice. */
    FamilyTraits corrected() {
        corrected = true;
        return this;
    }

    FamilyTraits correctedIf(String field, boolean absent) {
        correctedIf = read(field);
        corrected = absent;
        return this;
    }

    /** By the best groups; absent ones that don't fit are none. */
    FamilyTraits groups(String field, String taken, int absent, int absentTaken) {
        groupsField = read(field);
        takenField = read(taken);
        groups = absent;
        groupsTaken = absentTaken;
        return this;
    }

    /** Shared experts, each of width I; null is none, as in DeepSeek's own code. */
    FamilyTraits shared(String count, int absent) {
        sharedCount = read(count);
        shared = absent;
        return this;
    }

    /** A shared expert of a width of its own. */
    FamilyTraits sharedWidth(String field, int absent) {
        sharedWidth = read(field);
        shared = absent;
        return this;
    }

    /** If a field says so, a dense block of a width of its own beside the experts'. */
    FamilyTraits denseBeside(String whether, String field, int absent) {
        sharedIf = read(whether);
        peculiarities.add(Peculiarity.DENSE_BESIDE);
        return sharedWidth(field, absent);
    }

    /** A shared expert of width I in every layer. */
    FamilyTraits oneShared() {
        shared = 1;
        return this;
    }

    /** The shared expert is weighed by a sigmoid of the token. */
    FamilyTraits sharedGate() {
        sharedGate = true;
        return this;
    }

    /** Likewise, if a field says so. */
    FamilyTraits sharedGateIf(String field) {
        sharedGateIf = read(field);
        return this;
    }

    /** Shared experts have logits, and are divided by one sum with the chosen. */
    FamilyTraits normalizesShared() {
        normalizesShared = true;
        peculiarities.add(Peculiarity.ROUTER_HAS_SHARED);
        return this;
    }

    /** The shared expert is weighed by a sigmoid of the token, and the others by the rest. */
    FamilyTraits mixesShared() {
        mixesShared = true;
        peculiarities.add(Peculiarity.COEFFICIENT);
        return sharedGate();
    }

    /** From a first layer on so many have the experts of the first of them. */
    FamilyTraits sharedByLayers(String number, String first) {
        sharingField = read(number);
        firstSharingField = read(first);
        return this;
    }

    FamilyTraits zeroExperts(String field, int absent) {
        zeroExperts = read(field);
        zero = absent;
        return this;
    }

    /** The activation's name stands in that field. */
    FamilyTraits activation(String field, String absent) {
        activationField = read(field);
        activation = absent;
        return this;
    }

    /** An activation that isn't what {@code hidden_act} says; without constants its own. */
    FamilyTraits activates(MoeActivation own, @Nullable Double alpha, @Nullable Double beta) {
        ownActivation = own;
        this.alpha = alpha;
        this.beta = beta;
        return this;
    }

    /** The activation's alpha stands in that field. */
    FamilyTraits alpha(String field) {
        alphaField = read(field);
        return this;
    }

    /** What activations are cut off at; null is nothing. */
    FamilyTraits limited(String field, @Nullable Double absent) {
        limitField = read(field);
        limit = absent;
        return this;
    }

    /** What activations are cut off at, whatever config.json says. */
    FamilyTraits limited(double always) {
        limit = always;
        return this;
    }

    /** A limit of 0 is none. */
    FamilyTraits unlimitedIf0() {
        unlimitedIf0 = true;
        return this;
    }

    /** Shared experts aren't cut off. */
    FamilyTraits sharedUnlimited() {
        sharedUnlimited = true;
        return this;
    }

    FamilyTraits withoutGate() {
        gated = false;
        return this;
    }

    FamilyTraits biased() {
        biased = true;
        return this;
    }

    FamilyTraits weighsInput() {
        weighsInput = true;
        return this;
    }

    /** Layers that take a token's experts from a table by its id. */
    FamilyTraits tokenTable(BiPredicate<JsonFile, Integer> layers) {
        tabled = layers;
        return this;
    }

    /** The router is a network, whose width stands in that field. */
    FamilyTraits network(String width, int absent) {
        networkWidth = read(width);
        network = absent;
        return scored(ScoringFunction.NETWORK);
    }

    /** What only this family does with scores. */
    FamilyTraits routing(Routing own) {
        routing = own;
        return this;
    }

    /** What the shared expert's output is multiplied by. */
    FamilyTraits sharedScale(ToDoubleFunction<JsonFile> scale) {
        sharedScale = scale;
        return this;
    }

    /** What a layer is stands in a list that has as many as the model has layers. */
    FamilyTraits layerList(Function<JsonFile, List<String>> types, String sparse) {
        layerList = types;
        return dense((json, layer) -> {
            List<String> all = types.apply(json);
            String type = layer < all.size() ? all.get(layer) : "none";
            return type.equals(sparse) ? null : "of its layer types this is " + JsonFile.shown(type);
        });
    }

    /** Limits after the activation, for routed and shared experts, a value a layer; 0 and null are none. */
    FamilyTraits stepLimits(String routed, String sharedToo) {
        stepLimit = read(routed);
        sharedStepLimit = read(sharedToo);
        return perLayer(routed, sharedToo);
    }

    /** Lists of which the first is that of texts, the second that of pictures. */
    FamilyTraits firstOf(String... more) {
        ofTexts.addAll(Arrays.asList(more));
        fields.addAll(ofTexts);
        peculiarities.add(Peculiarity.OF_PICTURES);
        return this;
    }

    /** Experts have smaller ones beside them, with which they are as wide as both. */
    FamilyTraits adjugates() {
        besideEach = LayerShape.ADJUGATE_WIDTH;
        peculiarities.add(Peculiarity.ADJUGATES);
        return this;
    }

    /** What only this family's tensors have. */
    FamilyTraits tensors(Peculiarity... own) {
        peculiarities.addAll(Arrays.asList(own));
        return this;
    }

    /** Fields that are read, or after = the one value that a field which isn't read may have, with spaces between. */
    FamilyTraits fields(String more) {
        fields.addAll(Arrays.asList(more.split(" ")));
        return this;
    }

    /** Fields that may have a list with a value for each layer. */
    FamilyTraits perLayer(String... more) {
        perLayer.addAll(Arrays.asList(more));
        return this;
    }

    /** A list with an object for each layer, whose fields count before the model's. */
    FamilyTraits blocks(String field) {
        blocks = read(field);
        return this;
    }

    /** The first layers are dense; null is none of them. */
    FamilyTraits denseFirst(String field, int absent) {
        read(field);
        return dense((json, layer) -> {
            int dense = json.nonNegative(field, json.fields().containsKey(field) ? 0 : absent);
            return layer < dense ? field + " is " + dense : null;
        });
    }

    /** Every so many layers have experts, from 0 on; or a list says 0 for dense ones. */
    FamilyTraits every(String field) {
        read(field);
        return dense((json, layer) -> {
            if (json.fields().get(field) instanceof List<?>) {
                List<Integer> each = json.integers(field);
                return layer < each.size() && each.get(layer) != 0 ? null : field + " is " + JsonFile.shown(each);
            }
            int every = json.positive(field, 1);
            return layer % every == 0 ? null : field + " is " + every;
        });
    }

    /** Every so many layers have experts, the last of as many. */
    FamilyTraits lastOfEvery(String field) {
        read(field);
        return dense((json, layer) -> {
            int step = json.positive(field, 1);
            return (layer + 1) % step == 0 ? null : field + " is " + step;
        });
    }

    /** Those layers are dense. */
    FamilyTraits denseIn(String field) {
        read(field);
        return dense((json, layer) -> {
            List<Integer> dense = json.integers(field);
            return dense.contains(layer) ? field + " is " + JsonFile.shown(dense) : null;
        });
    }

    /** What only this family has of dense layers. */
    FamilyTraits dense(Rule rule) {
        rules.add(rule);
        return this;
    }

    /** A list of what each layer is counts before other fields. */
    FamilyTraits layerTypes(String field, String sparse) {
        read(field);
        List<Rule> others = List.copyOf(rules);
        rules.clear();
        return dense((json, layer) -> {
            if (!json.has(field)) {
                return first(others, json, layer);
            }
            List<String> types = json.strings(field);
            return layer < types.size() && types.get(layer).equals(sparse)
                    ? null
                    : field + " is " + JsonFile.shown(types);
        });
    }

    private static @Nullable String first(List<Rule> rules, JsonFile json, int layer) {
        for (Rule rule : rules) {
            String why = rule.whyDense(json, layer);
            if (why != null) {
                return why;
            }
        }
        return null;
    }

    /** What in the configuration makes that layer a dense one; null if it is an MoE layer. */
    @Nullable
    String whyDense(JsonFile json, int layer) {
        return first(rules, ofTexts(json), layer);
    }

    /** Fields that are read, and after = the one value that a field which isn't read may have. */
    Set<String> fields() {
        return fields;
    }

    /** What E may stand in, and K. */
    List<String> sizeFields() {
        List<String> all = new ArrayList<>(expertsFields);
        all.addAll(topKFields);
        return all;
    }

    /** Layers of the encoder, or of the model where it has none. */
    int encoderLayers(JsonFile json) {
        return json.positive(layersField, layers);
    }

    /** The number of a layer in the decoder, negative in the encoder. */
    int inDecoder(JsonFile json, int layer) {
        return decoderLayers == null ? -1 : layer - encoderLayers(json);
    }

    /** The configuration as that layer has it. */
    JsonFile at(JsonFile whole, int layer) {
        JsonFile json = ofBlock(ofStack(ofTexts(whole), layer), layer);
        if (perLayer.stream().noneMatch(field -> json.fields().get(field) instanceof List<?>)) {
            return json;
        }
        Map<String, @Nullable Object> own = new LinkedHashMap<>(json.fields());
        for (String field : perLayer) {
            if (json.fields().get(field) instanceof List<?> each) {
                if (each.isEmpty() && (field.equals(stepLimit) || field.equals(sharedStepLimit))) {
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
        own.put(width, json.positive(decoderWidth, intermediate));
        return new JsonFile(json.file(), own);
    }

    private JsonFile ofBlock(JsonFile json, int layer) {
        if (blocks == null
                || !(json.fields().get(blocks) instanceof List<?> each)
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
        own.replaceAll((field, value) ->
                ofTexts.contains(field) && value instanceof List<?> both && !both.isEmpty() ? both.getFirst() : value);
        return ofTexts.isEmpty() ? json : new JsonFile(json.file(), own);
    }

    /** The first layer with experts, where they differ from layer to layer; 0 if there is none, or they don't. */
    int firstSparse(JsonFile json) {
        if (tabled.test(json, 0)) {
            return IntStream.range(0, layers(json))
                    .filter(layer -> !tabled.test(json, layer))
                    .findFirst()
                    .orElse(0);
        }
        if (blocks == null && perLayer.stream().noneMatch(field -> json.fields().get(field) instanceof List<?>)) {
            return 0;
        }
        return IntStream.range(0, layers(json))
                .filter(layer -> whyDense(json, layer) == null)
                .findFirst()
                .orElse(0);
    }

    int layers(JsonFile json) {
        int number =
                layerList == null ? encoderLayers(json) : layerList.apply(json).size();
        if (decoderLayers != null && number <= MAX_LAYERS) {
            number += Math.min(MAX_LAYERS, json.positive(decoderLayers, layers));
        }
        if (number < 1) {
            throw new CheckpointException(json.file(), "has a list of layer types without any");
        }
        if (number > MAX_LAYERS) {
            throw json.wrong(layersField, "at most " + MAX_LAYERS);
        }
        return number;
    }

    /** Width of the shared expert, 0 if there is none. */
    int sharedIntermediate(JsonFile json) {
        if (sharedIf != null && !json.bool(sharedIf, false)) {
            return 0;
        }
        if (sharedWidth != null) {
            return json.nonNegative(sharedWidth, shared);
        }
        if (sharedCount == null) {
            return shared == 0 ? 0 : intermediate(json);
        }
        int count = json.nonNegative(sharedCount, json.fields().containsKey(sharedCount) ? 0 : shared);
        long all = (long) count * intermediate(json);
        if (all > Integer.MAX_VALUE) {
            throw json.wrong(sharedCount, "fewer of " + intermediate(json) + " rows each");
        }
        return (int) all;
    }

    private int intermediate(JsonFile json) {
        return json.positive(width, intermediate);
    }

    private int experts(JsonFile json) {
        int number = oneOf(json, expertsFields, experts);
        if (number < 1 || number > FusedMoeConfig.MAX_EXPERTS) {
            throw json.wrong(
                    expertsFields.stream().filter(json::has).findFirst().orElseThrow(),
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
        if (cut != null && cut == 0 && unlimitedIf0) {
            cut = null;
        }
        if (cut != null && limitField != null && cut <= 0) {
            throw json.wrong(limitField, "a positive number");
        }
        if (cut != null && function != MoeActivation.SILU && ownActivation == null) {
            throw json.wrong(activationField, "silu beside a '" + limitField + "' of " + cut);
        }
        FusedMoeConfig.Builder builder = FusedMoeConfig.builder()
                .numExperts(experts(json))
                .expertsPerToken(oneOf(json, topKFields, topK))
                .hiddenDim(json.positive(hiddenField, hidden))
                .intermediateSize(wide + besideEach)
                .numFusedSharedExperts(Math.ceilDiv(sharedWide, wide))
                .activation(function)
                .swigluLimit(cut)
                .swigluAlpha(alphaField == null || alpha == null ? alpha : (Double) json.finite(alphaField, alpha))
                .swigluBeta(beta)
                .sharedSwigluLimit(sharedUnlimited && cut != null ? 0.0 : null)
                .router(tabled.test(whole, layer) ? tabled(json) : router(json, sharedWide > 0))
                .hasBias(biased)
                .applyRouterWeightOnInput(weighsInput)
                .maxNumTokens(1);
        if (stepLimit != null && sharedStepLimit != null) {
            double routed = json.has(stepLimit) ? json.finite(stepLimit, 0) : 0;
            double other = json.has(sharedStepLimit) ? json.finite(sharedStepLimit, 0) : 0;
            if (routed != 0 || (other != 0 && sharedWide > 0)) {
                builder.activation(MoeActivation.SWIGLUSTEP)
                        .swigluLimit(routed == 0 ? (double) Float.MAX_VALUE : routed)
                        .sharedSwigluLimit(other);
            }
        }
        return builder.build();
    }

    private @Nullable Double limit(JsonFile json) {
        if (limitField == null || (json.fields().containsKey(limitField) && !json.has(limitField) && limit == null)) {
            return limit;
        }
        return json.fields().containsKey(limitField) ? Double.valueOf(json.finite(limitField, 0)) : limit;
    }

    private RouterConfig router(JsonFile json, boolean hasShared) {
        boolean divided = normalized;
        if (normalizedField != null) {
            divided = json.bool(normalizedField, normalized && !json.fields().containsKey(normalizedField));
        }
        RouterConfig router = new RouterConfig(
                scoring,
                scoresChosenOnly,
                divided,
                correctedIf == null ? corrected : json.bool(correctedIf, corrected),
                0,
                0,
                factorField == null ? factor : factor(json, factorField),
                zeroExperts == null ? zero : json.nonNegative(zeroExperts, zero),
                (sharedGate || (sharedGateIf != null && json.bool(sharedGateIf, false))) && hasShared,
                normalizesShared,
                mixesShared && hasShared,
                0,
                false);
        RouterConfig own = routing.of(this, json, router);
        return groupsField == null ? own : grouped(json, own, groups, groupsTaken);
    }

    /** The choice is a table's; of the rest, how weights are divided and scaled. */
    private RouterConfig tabled(JsonFile json) {
        RouterConfig router = router(json, false);
        return RouterConfig.of(ScoringFunction.TOKEN_TABLE, router.renormalize())
                .withRoutedScalingFactor(router.routedScalingFactor());
    }

    private double factor(JsonFile json, String field) {
        boolean isNull = json.fields().containsKey(field) && !json.has(field);
        return isNull && unscaledIfNull ? 1 : json.finite(field, factor);
    }

    /** By the best groups; null and 0 are none. Groups that the family has and that don't fit are none either. */
    RouterConfig grouped(JsonFile json, RouterConfig router, int absentGroups, int absentTaken) {
        String field = groupsField == null ? "n_group" : groupsField;
        String taken = groupsField == null ? "topk_group" : takenField;
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
        if (ownActivation != null) {
            return ownActivation;
        }
        MoeActivation found = switch (json.string(activationField, activation)) {
            case "silu", "swish" -> MoeActivation.SILU;
            case "gelu" -> MoeActivation.GELU;
            case "gelu_pytorch_tanh", "gelu_new" -> MoeActivation.GELU_TANH;
            case "relu" -> MoeActivation.RELU;
            case "relu2" -> MoeActivation.RELU2;
            default ->
                throw json.wrong(activationField, "silu, swish, gelu, gelu_new, gelu_pytorch_tanh, relu or relu2");
        };
        return gated ? found : found.withoutMul();
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
                (float) sharedScale.applyAsDouble(json),
                table ? config.expertsPerToken() : 0,
                networkWidth == null
                        ? null
                        : new LayerShape.Network(
                                json.positive(networkWidth, network), json.finite("rms_norm_eps", 1e-5), layer > 0),
                home(json, layer),
                stack(whole, layer),
                Set.copyOf(peculiarities));
    }

    /** The layer in which that layer's experts are. */
    private int home(JsonFile json, int layer) {
        if (sharingField == null) {
            return layer;
        }
        int first = json.nonNegative(firstSharingField, 0);
        return layer < first ? layer : layer - (layer - first) % json.positive(sharingField, 1);
    }

    private LayerShape.@Nullable Stack stack(JsonFile json, int layer) {
        int inDecoder = inDecoder(json, layer);
        return decoderLayers == null
                ? null
                : inDecoder < 0 ? new LayerShape.Stack("encoder.", layer) : new LayerShape.Stack("decoder.", inDecoder);
    }
}
