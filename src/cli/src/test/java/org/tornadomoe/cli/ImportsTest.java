package org.tornadomoe.cli;

import static org.assertj.core.api.Assertions.assertThat;

import org.junit.jupiter.api.Test;
import org.tornadomoe.build.ImportDirectionTest;

/** This module's part of {@link ImportDirectionTest}. */
class ImportsTest {
    @Test
    void importsPointOneWay() {
        assertThat(ImportDirectionTest.wrongImports(Moe.class)).isEmpty();
    }
}
