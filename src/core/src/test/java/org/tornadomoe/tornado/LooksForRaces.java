package org.tornadomoe.tornado;

import org.junit.jupiter.api.extension.AfterAllCallback;
import org.junit.jupiter.api.extension.BeforeAllCallback;
import org.junit.jupiter.api.extension.ExtendWith;
import org.junit.jupiter.api.extension.ExtensionContext;

/**
 * Has the interpreter look for races, and tell what kernels read and write, while a class's tests run; for
 * {@link ExtendWith}.
 */
class LooksForRaces implements BeforeAllCallback, AfterAllCallback {
    private static final String RACES = "tornadomoe.interpreter.races";

    @Override
    public void beforeAll(ExtensionContext context) {
        System.setProperty(RACES, "true");
        StageAccesses.listen();
    }

    @Override
    public void afterAll(ExtensionContext context) {
        System.clearProperty(RACES);
        StageAccesses.stop();
    }
}
