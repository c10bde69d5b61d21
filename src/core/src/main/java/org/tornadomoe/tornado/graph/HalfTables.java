package org.tornadomoe.tornado.graph;

import static org.tornadomoe.tornado.graph.ArrayTable.Owner.WORKSPACE;

import org.tornadomoe.config.ScalarType;
import org.tornadomoe.quant.HiddenStates;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;

/** Tables of a type of 16 bits, by which {@code HalfKernels} widen hidden states and round output. */
final class HalfTables {
    /** [2^16]: the value of each bit pattern. */
    final FloatArray widened;

    /** The least value that is rounded to a magnitude, by the magnitude's bits, up to infinity. */
    final FloatArray roundingThresholds;

    HalfTables(LayerShape shape, ArrayTable table) {
        int infinity = infinity(shape.config.inDtype());
        widened = table.floats("widened", WORKSPACE, shape.halves ? 1L << 16 : 1);
        roundingThresholds = table.floats("roundingThresholds", WORKSPACE, shape.halves ? infinity + 1L : 1);
    }

    /** The bits of infinity. */
    static int infinity(ScalarType type) {
        return type == ScalarType.F16 ? 0x7c00 : 0x7f80;
    }

    void fill(ScalarType type) {
        for (int bits = 0; bits < 1 << 16; bits++) {
            widened.set(bits, HiddenStates.widen(type, (short) bits));
        }
        roundingThresholds.set(0, 0);
        for (int bits = 1; bits <= infinity(type); bits++) {
            // In double, in which the middle of two neighbours is exact, and infinity the next power of two.
            double below = widened.get(bits - 1);
            double above = bits < infinity(type) ? widened.get(bits) : 2 * below - widened.get(bits - 2);
            float middle = (float) ((below + above) / 2);
            roundingThresholds.set(bits, bits % 2 == 0 ? middle : Math.nextUp(middle));
        }
    }
}
