package org.tornadomoe.host;

import static org.tornadomoe.host.Arithmetic.VECTOR_BITS;

import java.lang.foreign.MemorySegment;
import java.nio.ByteOrder;
import jdk.incubator.vector.ByteVector;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.VectorOperators;
import jdk.incubator.vector.VectorShape;
import jdk.incubator.vector.VectorSpecies;

/**
 * The vectors of this machine, and weights read into them. A vector that leaves the method it was made in may be put
 * on the heap, so none does but through {@link #weights}, which is small enough to be always inlined; hence a method
 * for each number of tokens in the classes that multiply.
 */
final class VectorLanes {
    /** The widest. */
    static final VectorSpecies<Float> F = VectorSpecies.of(float.class, VectorShape.forBitSize(bits()));

    static final int LANES = F.length();

    /** As many bytes as F has lanes; at least 8, the fewest there are, of which the first count. */
    static final VectorSpecies<Byte> B = VectorSpecies.of(byte.class, VectorShape.forBitSize(Math.max(64, 8 * LANES)));

    /** As wide as F, so of half as many lanes, as INTS and HALF have. */
    static final VectorSpecies<Double> D = F.withLanes(double.class);

    static final VectorSpecies<Integer> INTS =
            VectorSpecies.of(int.class, VectorShape.forBitSize(F.vectorBitSize() / 2));

    static final VectorSpecies<Float> HALF =
            VectorSpecies.of(float.class, VectorShape.forBitSize(F.vectorBitSize() / 2));

    /** As wide as F, and so many lanes. */
    static final VectorSpecies<Integer> WHOLE = F.withLanes(int.class);

    /** As wide as F: twice as many lanes. */
    static final VectorSpecies<Short> PAIRS = WHOLE.withLanes(short.class);

    private VectorLanes() {}

    /** The machine's width, or the narrower one of {@value #VECTOR_BITS}. */
    private static int bits() {
        int widest = FloatVector.SPECIES_PREFERRED.vectorBitSize();
        int bits = Integer.getInteger(VECTOR_BITS, widest);
        if ((bits != 128 && bits != 256 && bits != 512) || bits > widest) {
            throw new IllegalArgumentException(
                    VECTOR_BITS + ": expected 128, 256 or 512, at most " + widest + " on this machine, got " + bits);
        }
        return bits;
    }

    /** Weights of {@link #LANES} rows, in float. */
    static FloatVector weights(MemorySegment w, long at) {
        return (FloatVector)
                ByteVector.fromMemorySegment(B, w, at, ByteOrder.nativeOrder()).convertShape(VectorOperators.B2F, F, 0);
    }
}
