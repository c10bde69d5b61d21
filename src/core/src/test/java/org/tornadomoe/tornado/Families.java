package org.tornadomoe.tornado;

import java.util.List;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.tornado.device.HostMemory;
import org.tornadomoe.tornado.graph.ExpertGemm;
import org.tornadomoe.tornado.graph.LayerArrays;
import org.tornadomoe.tornado.graph.LayerProgram;
import org.tornadomoe.tornado.graph.PortableGemm;

/** The families of GEMMs that kernel classes have. */
public final class Families {
    private Families() {}

    /** Each once. */
    public static List<ExpertGemm> gemms() {
        return TornadoExperts.all().stream().map(TornadoExperts::gemm).toList();
    }

    /** The program of the family that arrays are made for. */
    public static LayerProgram program(LayerArrays arrays) {
        return ((ExpertGemm) arrays.shape.gemm).program(arrays);
    }

    /** The arrays of a layer with {@link PortableGemm} in the standard format. */
    public static LayerArrays arrays(FusedMoeConfig config, Int8Experts experts, long available, HostMemory memory) {
        return new LayerArrays(config, experts, available, memory, new PortableGemm(), false);
    }
}
