package org.tornadomoe.kernel;

import java.util.function.IntUnaryOperator;
import org.tornadomoe.config.FusedMoeConfig;

/**
 * Which (token, expert) pairs belong to this device, in a layer whose experts may be on several devices (vLLM: EPLB).
 * The replicas of an expert are numbered by device, so that those of one device are consecutive. A hash of the token's
 * position in the call chooses a pair's replica, so every device finds the same one without communication.
 *
 * @param table [E + 1, 3]: for each of the layer's experts, shared ones included: the number of its replicas, the first
 *     one on this device, and how many are on this device; then the same for zero experts
 */
public record Replicas(int[] table) {
    /**
     * Checks the table's shape.
     *
     * @throws IllegalArgumentException if its length is not a multiple of {@value #ROW}, or an expert has no replica
     */
    public Replicas {
        if (table.length == 0 || table.length % ROW != 0) {
            throw new IllegalArgumentException(
                    "table: expected rows of " + ROW + " numbers, at least one, got " + table.length + " numbers");
        }
        for (int row = 0; row < table.length; row += ROW) {
            if (table[row] < 1) {
                throw new IllegalArgumentException("table: expected a replica or more of each expert, got " + table[row]
                        + " of expert " + row / ROW);
            }
        }
    }

    /** 2^32 divided by the golden ratio, which spreads consecutive tokens. */
    public static final int HASH = (int) 2_654_435_769L;

    /** Ints per expert in the table. */
    public static final int ROW = 3;

    /**
     * Replicas for experts that are on one device each.
     *
     * @param experts E, at most {@value FusedMoeConfig#MAX_EXPERTS}
     * @param expertMap an expert's local number, -1 if it is on another device; zero experts are on the device of
     *     expert 0
     */
    public static Replicas allHere(int experts, IntUnaryOperator expertMap) {
        if (experts < 1 || experts > FusedMoeConfig.MAX_EXPERTS) {
            throw new IllegalArgumentException(
                    "experts: expected 1 to " + FusedMoeConfig.MAX_EXPERTS + ", got " + experts);
        }
        int[] table = new int[ROW * (experts + 1)];
        for (int e = 0; e <= experts; e++) {
            table[ROW * e] = 1;
            table[ROW * e + 2] = expertMap.applyAsInt(e % experts) >= 0 ? 1 : 0;
        }
        return new Replicas(table);
    }

    /**
     * The replica for a token's pair, from 0 to {@code count} - 1.
     *
     * @param count positive
     */
    public static int replica(int token, int count) {
        if (count < 1) {
            throw new IllegalArgumentException("count: expected a positive number, got " + count);
        }
        return Integer.remainderUnsigned(token * HASH, count);
    }

    /** Whether a pair belongs to this device. Ids below 0, of no expert, belong to none. */
    public boolean isHere(int id, int token) {
        if (id < 0) {
            return false;
        }
        int row = (int) Math.min((long) ROW * id, table.length - ROW);
        int replica = replica(token, table[row]) - table[row + 1];
        return replica >= 0 && replica < table[row + 2];
    }
}
