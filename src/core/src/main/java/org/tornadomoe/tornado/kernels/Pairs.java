package org.tornadomoe.tornado.kernels;

import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * What the expert GEMMs have in common: which pair of a token and one of its experts is at a place, which row of
 * activations it has, and what becomes of its sum. TornadoVM's compilers put these methods into the kernels that call
 * them. They may take numbers and a task's arrays. With a local array as an argument, OpenCL's code is wrong (5.2).
 */
public final class Pairs {
    /** Of a product's form: each pair has a row of activations of its own; else a token's pairs share one. */
    public static final int PER_PAIR = 1;

    /** Of a product's form: with biases. */
    public static final int BIASED = 2;

    /** Of a product's form: times the router's weights. */
    public static final int WEIGHTED = 4;

    /** Of a product's form: weights have zero points. */
    public static final int ZERO_POINTS = 16;

    /** Of a product's form: times the router's weights before the bias, as if activations had been. */
    public static final int ON_INPUT = 32;

    private Pairs() {}

    /** The pair at a place of {@code sortedIds}; what is no pair where the block is not active. */
    static int at(IntArray sortedIds, int place, int active, int pairs) {
        return active == 1 ? sortedIds.get(place) : pairs;
    }

    /** The row of activations of a pair. A place that pads a block has row 0; its sum is thrown away. */
    static int row(int pair, int pairs, int topK, int form) {
        int pairsPerRow = (form & PER_PAIR) != 0 ? 1 : topK;
        return pair < pairs ? pair / pairsPerRow : 0;
    }

    /** The row of activations of the pair at a place. */
    static int rowAt(IntArray sortedIds, int place, int active, int pairs, int topK, int form) {
        return row(at(sortedIds, place, active, pairs), pairs, topK, form);
    }

    /** A zero point, where the form has them. */
    static int zeroPoint(FloatArray zeroPoints, int at, int form) {
        return (form & ZERO_POINTS) != 0 ? (int) zeroPoints.get(at) : 0;
    }

    /**
     * Writes the output of a pair and a weight row, if they exist: a scaled sum, plus {@code bias[e][n]} if the form
     * has that and the expert exists, times the pair's router weight.
     */
    static void put(
            FloatArray bias,
            FloatArray topkWeights,
            FloatArray out,
            int pairs,
            int rows,
            int form,
            int expert,
            int pair,
            int n,
            float sum) {
        if (pair < pairs && n < rows) {
            float value = sum;
            if ((form & ON_INPUT) != 0) {
                value = value * topkWeights.get(pair);
            }
            if ((form & BIASED) != 0 && expert >= 0) {
                value = value + bias.get(expert * rows + n);
            }
            if ((form & WEIGHTED) != 0) {
                value = value * topkWeights.get(pair);
            }
            out.set(pair * rows + n, value);
        }
    }
}
