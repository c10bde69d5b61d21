package org.tornadomoe.checkpoint.family;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.EnumSet;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Set;
import java.util.function.BiPredicate;
import java.util.function.Function;
import java.util.function.ToDoubleFunction;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.family.LayerShape.Peculiarity;
import org.tornadomoe.checkpoint.file.JsonFile;
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
        RouterConfig of(FamilyReader family, JsonFile json, RouterConfig router);
    }

    final int layers;
    final int hidden;
    final int intermediate;
    final int experts;
    final int topK;

    @Nullable
    String sharingField;

    String firstSharingField = "";

    @Nullable
    String latentField;

    String latentNormField = "";

    @Nullable
    String situBeta;

    @Nullable
    String situLinearBeta;

    @Nullable
    String banksField;

    int banks;
    String layersField = "num_hidden_layers";
    String hiddenField = "hidden_size";
    String width = "moe_intermediate_size";
    List<String> expertsFields = EXPERTS;
    List<String> topKFields = TOP_K;
    ScoringFunction scoring = ScoringFunction.SOFTMAX;
    boolean scoresChosenOnly;
    boolean normalized;

    @Nullable
    String normalizedField;

    @Nullable
    String factorField;

    double factor = 1;
    boolean unscaledIfNull;

    @Nullable
    String correctedIf;

    boolean corrected;

    @Nullable
    String groupsField;

    String takenField = "";
    int groups;
    int groupsTaken;

    @Nullable
    String sharedCount;

    @Nullable
    String sharedWidth;

    @Nullable
    String sharedIf;

    int shared;
    boolean sharedGate;

    @Nullable
    String sharedGateIf;

    @Nullable
    String zeroExperts;

    int zero;
    String activationField = "hidden_act";
    String activation = "silu";

    @Nullable
    MoeActivation ownActivation;

    boolean gated = true;

    @Nullable
    String limitField;

    @Nullable
    Double limit;

    @Nullable
    Double alpha;

    @Nullable
    Double beta;

    @Nullable
    String alphaField;

    boolean sharedUnlimited;
    boolean unlimitedIf0;
    boolean biased;
    int besideEach;
    boolean weighsInput;
    boolean normalizesShared;
    boolean mixesShared;
    ToDoubleFunction<JsonFile> sharedScale = json -> 1;

    @Nullable
    Function<JsonFile, List<String>> layerList;

    BiPredicate<JsonFile, Integer> tabled = (json, layer) -> false;

    @Nullable
    String networkWidth;

    int network;

    @Nullable
    String blocks;

    @Nullable
    String stepLimit;

    @Nullable
    String sharedStepLimit;

    @Nullable
    String decoderLayers;

    String decoderWidth = "";
    Routing routing = (family, json, router) -> router;
    final List<Rule> rules = new ArrayList<>();
    final Set<String> fields = new LinkedHashSet<>();
    final Set<String> perLayer = new LinkedHashSet<>();
    final Set<String> ofTexts = new LinkedHashSet<>();
    final Set<Peculiarity> peculiarities = EnumSet.noneOf(Peculiarity.class);

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

    /** The model has so many banks of a router and experts; layer n has the n-th, and then again the first. */
    FamilyTraits banks(String number, int absent) {
        banksField = read(number);
        banks = absent;
        peculiarities.add(Peculiarity.BANKS);
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

    /** The activation may be {@code situ}, whose numbers stand in those fields. */
    FamilyTraits situ(String beta, String linearBeta) {
        situBeta = read(beta);
        situLinearBeta = read(linearBeta);
        return this;
    }

    /** Routed experts compute in a space as wide as a field says, and their sum may be normed there. */
    FamilyTraits latent(String width, String normed) {
        latentField = read(width);
        latentNormField = read(normed);
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

    /** Why the first of the rules that make the layer a dense one does; null if none does. */
    static @Nullable String first(List<Rule> rules, JsonFile json, int layer) {
        for (Rule rule : rules) {
            String why = rule.whyDense(json, layer);
            if (why != null) {
                return why;
            }
        }
        return null;
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

    /** Reads a config.json in these words. */
    FamilyReader reader() {
        return new FamilyReader(this);
    }
}
