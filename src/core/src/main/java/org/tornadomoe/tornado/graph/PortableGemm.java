package org.tornadomoe.tornado.graph;

import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.kernel.Support;
import org.tornadomoe.tornado.device.Device;

/** GEMMs on rows with shifts and multiplications, which every device has. */
public final class PortableGemm extends RowGemm {
    public PortableGemm() {
        super(false);
    }

    @Override
    public String name() {
        return "portable";
    }

    @Override
    public boolean supports(Int8Scheme scheme) {
        return true;
    }

    @Override
    public @Nullable Support obstacle(Device device) {
        return null;
    }
}
