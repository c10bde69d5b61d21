package org.tornadomoe.tornado.graph;

import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.tornadomoe.kernel.DeviceMemory;
import org.tornadomoe.kernel.InsufficientMemoryException;

/** What a layer's arrays take on the device, known before any of them is there. */
public final class MemoryReport {
    /** What helps where a layer is too large. */
    public static final String MORE_MEMORY =
            "fewer tokens a call, a part of the layer (expert or tensor parallelism), or, if the"
                    + " device has more, -Dtornado.device.memory";

    private final List<ArrayTable.Declared> arrays;
    private final long int8;

    private MemoryReport(Collection<ArrayTable.Declared> arrays, long int8) {
        this.arrays = List.copyOf(arrays);
        this.int8 = int8;
    }

    static MemoryReport of(LayerShape shape, Collection<ArrayTable.Declared> arrays) {
        long perExpert = (long) shape.gateUpRows * shape.hidden + (long) shape.hidden * shape.intermediate;
        return new MemoryReport(arrays, shape.localExperts * perExpert);
    }

    /** The report of all the arrays of such a layer. */
    public static MemoryReport of(LayerShape shape) {
        return of(shape, LayerArrays.declare(shape).declared().values());
    }

    /** Bytes on the device. */
    public long bytes() {
        return arrays.stream().mapToLong(ArrayTable.Declared::bytes).sum();
    }

    /** The same, weights apart. */
    public DeviceMemory memory() {
        long weights = arrays.stream()
                .filter(array -> array.whole().matches("(w13|w2)(Scales|ZeroPoints|Bias)?"))
                .mapToLong(ArrayTable.Declared::bytes)
                .sum();
        return new DeviceMemory(int8, weights, bytes() - weights);
    }

    /** The message that they are too large for who has {@code available} bytes, with the largest of them. */
    public String shortage(String owner, long available) {
        Map<String, Long> whole = new LinkedHashMap<>();
        arrays.forEach(array -> whole.merge(array.whole(), array.elements(), Long::sum));
        Map.Entry<String, Long> largest =
                whole.entrySet().stream().max(Map.Entry.comparingByValue()).orElseThrow();
        return String.format(
                "the layer needs %,d bytes of memory and %s has %,d; the largest part is %s with %,d",
                bytes(), owner, available, largest.getKey(), 4 * largest.getValue());
    }

    /** Throws unless they fit. */
    void require(long available) {
        long needed = bytes();
        if (needed > available) {
            throw new InsufficientMemoryException(
                    shortage("the device", available) + ". What helps: " + MORE_MEMORY, needed, available);
        }
        for (ArrayTable.Declared array : arrays) {
            if (array.elements() > Integer.MAX_VALUE) {
                throw new IllegalArgumentException(array.name()
                        + ": expected fewer than 2^31 elements (a TornadoVM array's limit), got " + array.elements());
            }
        }
    }
}
