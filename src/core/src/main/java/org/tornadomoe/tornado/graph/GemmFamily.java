package org.tornadomoe.tornado.graph;

import java.util.List;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.kernel.FusedMoeExperts;
import org.tornadomoe.kernel.Support;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.layout.WeightLayout;
import org.tornadomoe.tuning.LaunchConfig;
import org.tornadomoe.tuning.LaunchConfigs;

/**
 * A family of kernels for the experts' matrix products, without its stages: its weight layout, launch configurations,
 * device requirements and schemes.
 */
public interface GemmFamily {
    /** The block of rows that is a tile of a matrix product; for smaller ones weights are streamed. */
    int TILE = 128;

    /** Its name in the names of launch configuration files. */
    String name();

    WeightLayout layout();

    /**
     * Where in a row of int8 activations the k-th value is, with blocks of so many rows and a scale for so many
     * columns, 0 where a row has one.
     */
    default int placeOf(int k, int cols, int block, int colsPerScale) {
        return layout().placeOf(k);
    }

    /** The launch configurations of both products; of those with the same block of rows, the first is the default. */
    List<LaunchConfig> launches();

    boolean supports(Int8Scheme scheme);

    /** What the columns of a block or group are a multiple of, unless it has them all. */
    default int columnsOfScale() {
        return 4;
    }

    /** Whether activations in float reach the products in a form of their own, as those in int8 do. */
    default boolean packsFloats() {
        return false;
    }

    /** See {@link FusedMoeExperts#rounding}. */
    default @Nullable String rounding(Int8Scheme scheme) {
        return null;
    }

    /** Why a device can't run it, and the remedy; null if it can. */
    @Nullable
    Support obstacle(Device device);

    /** Whether its stages may be among a caller's own tasks. */
    default boolean joinsOtherTasks() {
        return true;
    }

    /** Ints of the array that passes a prebuilt kernel its sizes; 1 without such a kernel. */
    default int prebuiltSizes() {
        return 1;
    }

    /** Ints of the array in which its kernels keep sums meanwhile; 1 if they need none. */
    default long sums(LayerShape shape) {
        return 1;
    }

    /** Floats of such an array; 1 if they need none. */
    default long floatSums(LayerShape shape) {
        return 1;
    }

    /** Whether the first product ends with the activation, and finds the magnitudes of its rows. */
    default boolean activates() {
        return false;
    }

    /** Whether a token with a value that is no number, or beyond all range, gets NaN by the kernels themselves. */
    default boolean keepsNaN() {
        return false;
    }

    /** The launch for M tokens, one of {@link #launches}, unless the configuration names another. */
    LaunchConfig byRule(FusedMoeConfig config, int tokens);

    /** The same for every M. */
    default LaunchConfigs byRule(FusedMoeConfig config) {
        return LaunchConfigs.byRule(launches(), m -> byRule(config, m));
    }

    /** The first launch configuration with so many rows a block. */
    default LaunchConfig launchOf(int blockSize) {
        return launches().stream()
                .filter(launch -> launch.blockSizeM() == blockSize)
                .findFirst()
                .orElseThrow();
    }

    /** Pairs that an expert has of M tokens, on average. */
    static int pairsOfExpert(FusedMoeConfig config, int tokens) {
        return Math.ceilDiv(tokens * config.pairsPerToken(), config.globalNumExperts());
    }
}
