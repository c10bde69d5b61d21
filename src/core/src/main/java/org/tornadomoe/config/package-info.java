/** What a layer is: sizes, activation, routing, number format. Records and enums with validation, nothing else. */
@NullMarked
package org.tornadomoe.config;

import org.jspecify.annotations.NullMarked;
