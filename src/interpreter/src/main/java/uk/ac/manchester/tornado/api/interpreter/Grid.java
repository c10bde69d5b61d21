package uk.ac.manchester.tornado.api.interpreter;

import uk.ac.manchester.tornado.api.WorkerGrid;
import uk.ac.manchester.tornado.api.exceptions.TornadoRuntimeException;

/**
 * The sizes of one launch: the numbers of work-items in total and per group, and the first global id, in x, y and z.
 */
record Grid(int[] global, int[] local, int[] offset) {
    /** The maximum number of work-items per group. */
    static final int MAX_GROUP = 1024;

    /**
     * Reads and checks a grid; without local work, the largest group of at most 256 work-items that divides the grid.
     */
    static Grid of(WorkerGrid grid, String task) {
        long[] globalWork = grid.getGlobalWork();
        long[] localWork = grid.getLocalWork();
        long[] offset = grid.getGlobalOffset();
        int[] global = new int[3];
        int[] local = new int[3];
        int[] first = new int[3];
        int room = 256;
        for (int d = 0; d < 3; d++) {
            global[d] = size(globalWork[d], "global work", d, task);
            local[d] = localWork == null ? largestDivisor(global[d], room) : size(localWork[d], "local work", d, task);
            room /= Math.max(local[d], 1);
            if (global[d] % local[d] != 0) {
                throw new TornadoRuntimeException("task " + task + ": global work " + "xyz".charAt(d)
                        + ": expected a multiple of the local work " + local[d] + ", got " + global[d]);
            }
            first[d] = offset == null ? 0 : Math.toIntExact(offset[d]);
        }
        long group = (long) local[0] * local[1] * local[2];
        if (group > MAX_GROUP) {
            throw new TornadoRuntimeException(
                    "task " + task + ": local work: expected at most " + MAX_GROUP + " work-items, got " + group);
        }
        return new Grid(global, local, first);
    }

    private static int size(long size, String what, int dimension, String task) {
        if (size < 1 || size > Integer.MAX_VALUE) {
            throw new TornadoRuntimeException("task " + task + ": " + what + " " + "xyz".charAt(dimension)
                    + ": expected 1 to 2147483647, got " + size);
        }
        return (int) size;
    }

    private static int largestDivisor(int size, int atMost) {
        for (int divisor = Math.min(size, Math.max(atMost, 1)); ; divisor--) {
            if (size % divisor == 0) {
                return divisor;
            }
        }
    }

    /** The number of work-items per group. */
    int groupSize() {
        return local[0] * local[1] * local[2];
    }

    int groups(int dimension) {
        return global[dimension] / local[dimension];
    }

    long groups() {
        return (long) groups(0) * groups(1) * groups(2);
    }

    /** The position of a group in the grid; x varies fastest. */
    int[] group(long number) {
        return new int[] {
            (int) (number % groups(0)), (int) (number / groups(0) % groups(1)), (int) (number / groups(0) / groups(1))
        };
    }
}
