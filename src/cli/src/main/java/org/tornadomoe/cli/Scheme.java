package org.tornadomoe.cli;

import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.ExpertWeights;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Spec;

/** The options that choose the quantisation. */
final class Scheme {
    @Spec(Spec.Target.MIXEE)
    CommandSpec spec;

    @Option(
            names = "--scheme",
            paramLabel = "S",
            description =
                    "The int8 scheme: ${COMPLETION-CANDIDATES}; default the checkpoint's own, or w8a8_channel if it is"
                            + " not quantised or the weights are random.")
    @Nullable
    Int8Scheme scheme;

    @Option(
            names = "--block",
            paramLabel = "N|RxC",
            description = "With w8a8_block: rows x columns of a block that shares a scale; default 128x128.")
    @Nullable
    String block;

    @Option(
            names = "--group",
            paramLabel = "N",
            description =
                    "With w8a16_group: how many columns of a row share a scale, -1 for the whole row; default 128.")
    @Nullable
    Integer group;

    @Option(names = "--zero-points", description = "With w8a16_group: give every group a zero point.")
    boolean zeroPoints;

    @Option(
            names = "--round-to-nearest",
            description =
                    "With w8a8_block: round activations to the nearest integer; without it they are truncated, as in"
                            + " vLLM.")
    boolean roundToNearest;

    /** Whether one of the options was given. */
    boolean isGiven() {
        return scheme != null || block != null || group != null || zeroPoints || roundToNearest;
    }

    /** The options' quantisation or, if no option was given, the stored one. Throws as {@link #quantization()}. */
    Int8Quantization quantization(ExpertWeights weights) {
        return isGiven() ? quantization() : weights.quantization();
    }

    /** @throws ParameterException if the options don't fit together */
    Int8Quantization quantization() {
        Int8Quantization quantization = Int8Quantization.of(scheme == null ? Int8Scheme.W8A8_CHANNEL : scheme);
        requireScheme("--block", block != null, Int8Scheme.W8A8_BLOCK, quantization);
        requireScheme("--group", group != null, Int8Scheme.W8A16_GROUP, quantization);
        requireScheme("--zero-points", zeroPoints, Int8Scheme.W8A16_GROUP, quantization);
        requireScheme("--round-to-nearest", roundToNearest, Int8Scheme.W8A8_BLOCK, quantization);
        try {
            if (block != null) {
                quantization = quantization.withGrid(shape(block));
            }
            if (group != null) {
                quantization = quantization.withGrid(new GroupShape(1, group));
            }
        } catch (IllegalArgumentException wrong) {
            throw new ParameterException(
                    spec.commandLine(),
                    block != null
                            ? "--block: expected a positive number, or rows x columns such as 64x128, got '" + block
                                    + "'"
                            : "--group: expected a positive number, or -1 for whole rows, got " + group,
                    wrong);
        }
        return quantization.withZeroPoints(zeroPoints).withRoundToNearest(roundToNearest);
    }

    private void requireScheme(String option, boolean given, Int8Scheme expected, Int8Quantization quantization) {
        if (given && quantization.scheme() != expected) {
            throw new ParameterException(
                    spec.commandLine(), option + ": expected --scheme " + expected + ", got " + quantization.scheme());
        }
    }

    private static GroupShape shape(String text) {
        int x = text.indexOf('x');
        int rows = Integer.parseInt(x < 0 ? text : text.substring(0, x));
        return new GroupShape(rows, x < 0 ? rows : Integer.parseInt(text.substring(x + 1)));
    }
}
