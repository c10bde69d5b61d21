package org.tornadomoe.config;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class EplbConfigTest {
    @Test
    void eachFieldIsChangedAlone() {
        EplbConfig config = new EplbConfig(10, 40, 2, true, 5, true);
        assertThat(config.withWindowSize(11)).isEqualTo(new EplbConfig(11, 40, 2, true, 5, true));
        assertThat(config.withStepInterval(41)).isEqualTo(new EplbConfig(10, 41, 2, true, 5, true));
        assertThat(config.withNumRedundantExperts(3)).isEqualTo(new EplbConfig(10, 40, 3, true, 5, true));
        assertThat(config.withUseAsync(false)).isEqualTo(new EplbConfig(10, 40, 2, true, 5, false));
    }

    @ParameterizedTest
    @CsvSource({"7, true, 7", "1, true, 1", "0, false, 1", "-3, false, 1"})
    void aLogIntervalSwitchesTheLogOnAndNoneOff(int interval, boolean logs, int every) {
        assertThat(EplbConfig.DEFAULT.withLogBalancedness(interval))
                .isEqualTo(new EplbConfig(1000, 3000, 0, logs, every, true));
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            value = {
                "0 | 1 | 0 | 1 | windowSize: expected a positive number, got 0",
                "1 | 0 | 0 | 1 | stepInterval: expected a positive number, got 0",
                "1 | 1 | -1 | 1 | numRedundantExperts: expected 0 or more, got -1",
                "1 | 1 | 0 | 0 | logBalancednessInterval: expected a positive number, got 0",
            })
    void aWrongNumberIsNamed(int window, int step, int copies, int log, String message) {
        assertThatIllegalArgumentException()
                .isThrownBy(() -> new EplbConfig(window, step, copies, true, log, false))
                .withMessage(message);
    }

    @Test
    void theLeastNumbersAreAccepted() {
        assertThat(new EplbConfig(1, 1, 0, true, 1, false).windowSize()).isEqualTo(1);
    }
}
