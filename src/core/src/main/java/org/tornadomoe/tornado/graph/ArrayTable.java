package org.tornadomoe.tornado.graph;

import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.function.IntToLongFunction;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.tornado.device.HostMemory;
import org.tornadomoe.tornado.layout.ExpertParts;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * A layer's arrays by name. Whoever has an array declares it here, once: with its owner and its elements, of four bytes
 * each. A table either only counts, and gives any array for each, or has them all.
 */
final class ArrayTable {
    /** Whose an array is where several layers run one after the other. */
    enum Owner {
        /** The layer's own: its weights and what comes with them, what goes in and what comes out. */
        LAYER,
        /** In common: only between the kernels of a call does anybody need it. */
        WORKSPACE
    }

    /**
     * One array, by its declaration.
     *
     * @param elements may be more than an array can have
     */
    record Declared(String name, Owner owner, long elements, boolean isFloat) {
        long bytes() {
            return 4 * elements + TornadoNativeArray.ARRAY_HEADER;
        }

        /** Without the number of a part. */
        String whole() {
            return name.replaceFirst("\\[.*", "");
        }
    }

    private static final class Any {
        static final IntArray INTS = new IntArray(1);
        static final FloatArray FLOATS = new FloatArray(1);
    }

    private final Map<String, Declared> declared = new LinkedHashMap<>();
    private final @Nullable Map<String, TornadoNativeArray> arrays;

    /** One that only counts. */
    ArrayTable() {
        arrays = null;
    }

    private ArrayTable(Map<String, TornadoNativeArray> arrays) {
        this.arrays = arrays;
    }

    /**
     * With all arrays that this one has counted.
     *
     * @param given arrays to take by their names; the others are new
     */
    ArrayTable allocate(HostMemory memory, Map<String, TornadoNativeArray> given) {
        Map<String, TornadoNativeArray> all = new LinkedHashMap<>(given);
        // It takes as long to fill the weights with zeros as with themselves: on as many cores as there are arrays.
        declared.values().stream().filter(array -> !given.containsKey(array.name)).toList().parallelStream()
                .map(array -> Map.entry(array.name, allocate(array, memory)))
                .toList()
                .forEach(made -> all.put(made.getKey(), made.getValue()));
        return new ArrayTable(all);
    }

    private static TornadoNativeArray allocate(Declared array, HostMemory memory) {
        int elements = Math.toIntExact(array.elements);
        return array.isFloat ? memory.floats(elements) : memory.ints(elements);
    }

    IntArray ints(String name, Owner owner, long elements) {
        return declare(new Declared(name, owner, elements, false)) instanceof IntArray array ? array : Any.INTS;
    }

    FloatArray floats(String name, Owner owner, long elements) {
        return declare(new Declared(name, owner, elements, true)) instanceof FloatArray array ? array : Any.FLOATS;
    }

    private @Nullable TornadoNativeArray declare(Declared array) {
        if (declared.putIfAbsent(array.name, array) != null) {
            throw new IllegalStateException("two arrays are called " + array.name);
        }
        return arrays == null ? null : Objects.requireNonNull(arrays.get(array.name), array.name);
    }

    /** One a part, {@code name[0]} and so on where there are several. */
    List<IntArray> ints(String name, Owner owner, ExpertParts parts, IntToLongFunction elementsOfExperts) {
        return parts.each(
                part -> ints(parts.name(name, part), owner, elementsOfExperts.applyAsLong(parts.experts(part))));
    }

    List<FloatArray> floats(String name, Owner owner, ExpertParts parts, IntToLongFunction elementsOfExperts) {
        return parts.each(
                part -> floats(parts.name(name, part), owner, elementsOfExperts.applyAsLong(parts.experts(part))));
    }

    /** In the order of their declarations. */
    Map<String, Declared> declared() {
        return declared;
    }

    /** Every array by its name; none where they are only counted. */
    Map<String, TornadoNativeArray> arrays() {
        return arrays == null ? Map.of() : arrays;
    }
}
