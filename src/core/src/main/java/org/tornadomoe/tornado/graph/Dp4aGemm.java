package org.tornadomoe.tornado.graph;

import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.kernel.Support;
import org.tornadomoe.tornado.device.Device;

/** GEMMs on rows with the {@code dp4a} instruction, which adds four int8 products to a sum. */
public final class Dp4aGemm extends RowGemm {
    public Dp4aGemm() {
        super(true);
    }

    @Override
    public String name() {
        return "dp4a";
    }

    @Override
    public boolean supports(Int8Scheme scheme) {
        return scheme.quantizesActivations();
    }

    @Override
    public @Nullable Support obstacle(Device device) {
        String lacking = device.lacksDp4a();
        return lacking == null
                ? null
                : Support.no(device + " has no dp4a: " + lacking, "device: one with dp4a, through CUDA or PTX");
    }
}
