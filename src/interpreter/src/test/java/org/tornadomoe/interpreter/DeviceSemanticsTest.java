package org.tornadomoe.interpreter;

import static org.junit.jupiter.api.Assumptions.assumeTrue;

import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Tag;
import uk.ac.manchester.tornado.api.enums.TornadoVMBackendType;
import uk.ac.manchester.tornado.api.runtime.TornadoRuntimeProvider;

@Tag("device")
class DeviceSemanticsTest extends Semantics {
    @BeforeEach
    void needsAnSdk() {
        assumeTrue(
                TornadoRuntimeProvider.getTornadoRuntime().getBackendType(0) != TornadoVMBackendType.JAVA,
                "TornadoVM's SDK is not on the module path");
    }
}
